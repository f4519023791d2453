"""What a run tells while it trains: a bar for people, a CSV for plots, and a way to stop it."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from i2i import distributed
from i2i.errors import TrainingDiverged, UsageError
from i2i.files import replacing

ROWS = 1024  # of losses that wait: more than a second of the smallest networks
HANG_UP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()  # of a closed terminal


class ProgressBar:
    """One line on stderr that is rewritten on a terminal, and a new line every tenth of the way anywhere else."""

    def __init__(self, first: int, last: int, batch_size: int):
        self.first, self.last, self.batch_size = first, last, batch_size
        self.silent = distributed.rank() > 0
        self.terminal = sys.stderr.isatty() and not self.silent
        self.began, self.shown = time.perf_counter(), 0

    def show(self, step: int, losses: dict[str, float]) -> None:
        """`step`: how many steps are done. Speed and remaining time are averages since this process began."""
        tenth = 10 * step // self.last
        if self.silent or (not self.terminal and tenth == self.shown):
            return
        self.shown = tenth
        speed = (step - self.first) / max(time.perf_counter() - self.began, 1e-9)
        bar = "#" * (20 * step // self.last)
        left = time.strftime("%H:%M:%S", time.gmtime((self.last - step) / speed)) if speed else "?"
        values = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        line = f"[{bar:20}] {step}/{self.last}  {speed * self.batch_size:.1f} images/s  {left} left  {values}"
        if self.terminal:
            # Cut to the terminal's width: a wrapped line could not be rewritten. \033[K clears what the last one left.
            with contextlib.suppress(OSError):
                width = os.get_terminal_size(sys.stderr.fileno()).columns
                line = f"\r{line[: width - 1]}\033[K"
        try:
            print(line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)
        except OSError:  # the terminal was closed, or the reader has left: no reason to stop a run
            self.silent, self.terminal = True, False

    def close(self) -> None:
        if self.terminal:
            with contextlib.suppress(OSError):
                print(file=sys.stderr)


class LossLog:
    """losses.csv: one row per step. Values stay on their device until `flush`, in a table that is then written from its
    top again: a step waits for no transfer, and a thousand steps keep no thousand tensors.

    With several processes the rows are their means, and the first one writes.
    """

    def __init__(self, folder: Path, done: int = 0, tensorboard: bool = False):
        """`done`: steps to keep of a file that is there already; rows written after the checkpoint are dropped."""
        self.path = folder / "losses.csv"
        self.steps: list[int] = []  # whose losses wait
        self.names: list[str] = []
        self.table = torch.empty(0)
        self.last: dict[str, float] = {}
        self.writes = distributed.rank() == 0
        self.board = open_tensorboard(folder, done) if tensorboard and self.writes else None
        kept = read_rows(self.path, done) if done and self.path.is_file() else []
        self.has_header = bool(kept)
        if self.writes:
            with replacing(self.path) as temporary:
                self._write(temporary, kept, "w")

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Room is for ROWS steps between two flushes; see `full`."""
        values = [loss.detach() for loss in losses.values()]
        if not self.names:
            self.names = list(losses)
            self.table = torch.empty(ROWS, len(values), dtype=values[0].dtype, device=values[0].device)
        torch.stack(values, out=self.table[len(self.steps)])
        self.steps.append(step)

    @property
    def full(self) -> bool:
        return len(self.steps) == ROWS

    def flush(self) -> None:
        """Write what waits. Raises TrainingDiverged at the first value that is not finite."""
        if not self.steps:
            return
        names, steps = self.names, self.steps
        waiting = self.table[: len(steps)]
        distributed.average([waiting])
        values = waiting.tolist()  # one transfer
        if self.writes:
            rows = [[step, *(f"{value:.9g}" for value in row)] for step, row in zip(steps, values, strict=True)]
            self._write(self.path, rows if self.has_header else [["step", *names], *rows], "a")
            self.has_header = True
        if self.board:
            for step, row in zip(steps, values, strict=True):
                for name, value in zip(names, row, strict=True):
                    self.board.add_scalar(name, value, step)
            self.board.flush()  # it writes in a thread of its own; this is where a full disk is told
        for step, row in zip(steps, values, strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise TrainingDiverged(f"{name} is {value} at step {step}")
        self.last = dict(zip(names, values[-1], strict=True))
        self.steps = []

    def close(self) -> None:
        if self.board:
            board, self.board = self.board, None
            board.close()

    @staticmethod
    def _write(path: Path, rows: Iterable[Iterable[object]], mode: str) -> None:
        with open(path, mode, newline="") as file:
            csv.writer(file).writerows(rows)


def read_rows(path: Path, done: int) -> list[list[str]]:
    """The header of losses.csv and its rows up to step `done`. UsageError if it is not a table that a run wrote."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]  # broken off by a kill: "100" may have been to become "1001"
    rows = [line.rstrip("\r\n").split(",") for line in lines]
    for number, row in enumerate(rows, 1):
        right = row[0] == "step" if number == 1 else row[0].isdecimal() and len(row) == len(rows[0])
        if not right:
            raise UsageError(f"{path}: line {number} is not as a run wrote it; mend it or move the file away")
    return [row for number, row in enumerate(rows) if number == 0 or int(row[0]) <= done]


def open_tensorboard(folder: Path, done: int) -> Any:
    """A torch.utils.tensorboard.SummaryWriter; events of a previous part of the run past step `done` are hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("tensorboard=true needs the package: pip install tensorboard") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)


class StopRequest:
    """While entered, the first Ctrl-C (or SIGTERM, or the terminal's end) only sets `signal`, so that the step under
    way can end and be saved; a second one interrupts at once, unless it comes within a second: torchrun passes on what
    the terminal has sent to its processes already. Outside the main thread it asks for nothing."""

    def __init__(self) -> None:
        self.signal, self.at = 0, 0.0

    def __enter__(self) -> StopRequest:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread hears signals: what is to become of this one is its starter's business
        for number in (signal.SIGINT, signal.SIGTERM, *HANG_UP):
            before = signal.getsignal(number)
            if before is None or (number in HANG_UP and before is signal.SIG_IGN):
                continue  # not Python's to put back; nohup
            self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal and now - self.at > 1:
            raise KeyboardInterrupt
        self.signal, self.at = number, now

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
