"""What a run tells while it trains: a bar for people, a CSV for plots, and a way to stop it."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from i2i.errors import TrainingDiverged


class ProgressBar:
    """One line on stderr that is rewritten on a terminal, and a new line every tenth of the way anywhere else."""

    def __init__(self, first: int, last: int, batch_size: int):
        self.first, self.last, self.batch_size = first, last, batch_size
        self.terminal = sys.stderr.isatty()
        self.began, self.shown = time.perf_counter(), 0

    def show(self, step: int, losses: dict[str, float]) -> None:
        """`step`: how many steps are done. Speed and remaining time are averages since this process began."""
        tenth = 10 * step // self.last
        if not self.terminal and tenth == self.shown:
            return
        self.shown = tenth
        speed = (step - self.first) / max(time.perf_counter() - self.began, 1e-9)
        bar = "#" * (20 * step // self.last)
        left = time.strftime("%H:%M:%S", time.gmtime((self.last - step) / speed)) if speed else "?"
        values = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        line = f"[{bar:20}] {step}/{self.last}  {speed * self.batch_size:.1f} images/s  {left} left  {values}"
        if self.terminal:
            # Cut to the terminal's width: a wrapped line could not be rewritten. \033[K clears what the last one left.
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            line = f"\r{line[: width - 1]}\033[K"
        print(line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)


class LossLog:
    """losses.csv: one row per step. Values stay on their device until `flush`, so that a step waits for no transfer."""

    def __init__(self, path: Path, done: int = 0):
        """`done`: steps to keep of a file that is there already; rows written after the checkpoint are dropped."""
        self.path = path
        self.waiting: list[tuple[int, dict[str, Tensor]]] = []
        self.last: dict[str, float] = {}
        kept: list[list[str]] = []
        if done and path.is_file():
            with open(path, newline="") as file:
                kept = [row for row in csv.reader(file) if row and (row[0] == "step" or int(row[0]) <= done)]
        self._write(kept, "w")
        self.has_header = bool(kept)

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        self.waiting.append((step, losses))

    def flush(self) -> None:
        """Write what waits. Raises TrainingDiverged at the first value that is not finite."""
        if not self.waiting:
            return
        names = list(self.waiting[0][1])
        values = torch.stack(
            [torch.stack(list(losses.values())) for _, losses in self.waiting]
        ).tolist()  # one transfer
        rows = [[step, *(f"{value:.9g}" for value in row)] for (step, _), row in zip(self.waiting, values, strict=True)]
        self._write(rows if self.has_header else [["step", *names], *rows], "a")
        self.has_header = True
        for (step, _), row in zip(self.waiting, values, strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise TrainingDiverged(f"{name} is {value} at step {step}")
        self.last = dict(zip(names, values[-1], strict=True))
        self.waiting.clear()

    def _write(self, rows: Iterable[Iterable[object]], mode: str) -> None:
        with open(self.path, mode, newline="") as file:
            csv.writer(file).writerows(rows)


class StopRequest:
    """While entered, the first Ctrl-C (or SIGTERM) only sets `signal`, so that the step under way can end and be saved;
    a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
