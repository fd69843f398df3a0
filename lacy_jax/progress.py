"""Progress of long work: a bar on a terminal, plain lines elsewhere (logs of a pod, CI)."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """Counts `unit`s of work; use as a context manager.

    On a terminal this is a tqdm bar on stderr; elsewhere it prints at most one line every `line_every_s` seconds and
    one at the end, so that log files stay readable.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "it",
        initial: int = 0,
        line_every_s: float = 30.0,
    ):
        self.label, self.total, self.unit, self.count = label, total, unit, initial
        self._line_every_s = line_every_s
        self._start = self._last_line = time.monotonic()
        self._initial = initial
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(desc=label, total=total, unit=unit, initial=initial, dynamic_ncols=True)
            if terminal
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._line("")

    def update(self, n: int = 1, note: str = "") -> None:
        """Count `n` more units; `note` ("loss 3.21") follows the bar or the line."""
        self.count += n
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
        elif time.monotonic() - self._last_line >= self._line_every_s:
            self._line(note)

    def _line(self, note: str) -> None:
        self._last_line = time.monotonic()
        elapsed = max(self._last_line - self._start, 1e-9)
        rate = (self.count - self._initial) / elapsed
        of = f"/{self.total}" if self.total else ""
        print(
            f"{self.label}: {self.count}{of} {self.unit} ({rate:.1f} {self.unit}/s) {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


class Silent:
    """The same interface, but shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, n: int = 1, note: str = "") -> None:
        """Do nothing."""
