"""A progress bar on stderr: redrawn on a terminal, a line now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time

LINE_EVERY_S = 10.0  # where stderr is no terminal


class Progress:
    def __init__(self, total: int) -> None:
        self._total, self._done, self._label = total, 0, ""
        self._start = self._printed = time.monotonic()
        self._tty = sys.stderr.isatty()

    def show(self, label: str) -> None:
        """What is being worked on now."""
        self._label = label
        self._draw()

    def step(self) -> None:
        self._done += 1
        self._draw()

    def note(self, message: str) -> None:
        """A line of its own that stays."""
        self._wipe()
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._wipe()

    def _wipe(self) -> None:
        if self._tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        now = time.monotonic()
        last = self._done == self._total
        if not self._tty and not last and now - self._printed < LINE_EVERY_S:
            return
        self._printed = now
        left = (now - self._start) / self._done * (self._total - self._done) if self._done else None
        rest = "" if left is None else f", {left:.0f} s left"
        filled = round(24 * self._done / max(1, self._total))
        text = f"[{'#' * filled}{'.' * (24 - filled)}] {self._done}/{self._total}{rest}  {self._label}"
        if self._tty:
            print("\r\033[K" + text[: shutil.get_terminal_size().columns - 1], end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
