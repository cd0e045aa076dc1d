"""What the recorder says on stderr: messages and, on a terminal, a bar with the time left."""

import sys

from tqdm import tqdm


class Progress:
    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self._bar = None

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"kvsim-record: {text}", file=sys.stderr, flush=True)

    def phase(self, name: str, total: int, unit: str) -> None:
        """Begins a phase of `total` steps; the bar shows on terminals only."""
        self.end()
        hidden = self.quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=name, unit=unit, disable=hidden, file=sys.stderr, leave=False)

    def step(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
