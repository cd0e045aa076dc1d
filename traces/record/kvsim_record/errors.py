"""The errors that end a recording with one line and an exit code, and the stop that a signal asks for."""


class RecordError(Exception):
    """Wrong use, unreadable input, or a model that the trace format cannot hold (exit code 2)."""

    exit_code = 2


class SelfCheckError(RecordError):
    """What was stored does not reproduce the model's own attention output (exit code 1)."""

    exit_code = 1


class Stopped(BaseException):
    """A signal asked the recording to stop; not an Exception, so that no handler swallows it."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number
