"""What the package's commands say on stderr: messages, and how far they are: a bar on a terminal, elsewhere a line now and then."""

import sys
import time

from tqdm import tqdm

_LINE_EVERY = 15.0  # seconds


class Progress:
    """`lines`: without a terminal, say how far it is every quarter of a minute."""

    def __init__(self, quiet: bool = False, program: str = "kvsim-record", lines: bool = False):
        self.quiet, self._program, self._lines = quiet, program, lines and not quiet and not sys.stderr.isatty()
        self._bar = None
        self._name, self._unit, self._total, self._done = "", "", 0, 0
        self._began = self._said = 0.0

    def say(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(f"{self._program}: {text}", file=sys.stderr)
            sys.stderr.flush()

    def phase(self, name: str, total: int, unit: str) -> None:
        """Begins a phase of `total` steps."""
        self.end()
        hidden = self.quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=name, unit=unit, disable=hidden, file=sys.stderr, leave=False)
        self._name, self._unit, self._total, self._done = name, unit, total, 0
        self._began = self._said = time.monotonic()

    def step(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._lines and self._done and now - self._said > _LINE_EVERY:
            left = (now - self._began) / self._done * (self._total - self._done)
            self.say(f"{self._name}: {self._done} of {self._total} {self._unit}s, about {left:.0f} s left")
            self._said = now

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
