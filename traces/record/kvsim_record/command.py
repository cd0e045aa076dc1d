"""How the package's commands end: errors in one line with an exit code, signals without a traceback."""

import signal
import sys

from .errors import RecordError, Stopped


def guarded(program: str, work, stopped: str) -> int:
    """Runs `work()`; the exit code. `stopped` is what a person reads after a signal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        work()
    except RecordError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return error.exit_code
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"{program}: {stopped}", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    return 0


def _stop(number, _frame):
    raise Stopped(number)
