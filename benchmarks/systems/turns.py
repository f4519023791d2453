"""What the tables of whole training steps share: contestants in turn, and a gate before the timing.

Each contestant lives in a process of its own (child.py) and steps when it is its turn: rounds are interleaved and
peak memory is honest. Nothing is timed whose first losses and gradients do not agree with the
baseline's (the published form; in the zoo plain torch).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.engine import machine
from benchmarks.engine.measure import spread
from benchmarks.engine.progress import Progress
from benchmarks.engine.work import Json

Rows = dict[str, Json]

# Relative distance of the first step's gradients from the published form's in float32. Between two float32 forms it is
# the conditioning of 23 norms in a row (5e-3 in CUT, 6e-3 in CycleGAN); of bfloat16 ones 0.2, so twice that.
LIMITS = {"float32": 1e-2, "bfloat16": 0.4}
LOSS_LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}
LATE = "no answer in time"
COMMANDS = 4  # to each contestant besides those that are timed: the first step, warm, peak, share


class Contestant(NamedTuple):
    """MODULE.contestant(device, **arguments), and whose limits it is held to."""

    module: str
    arguments: Json
    precision: str


class Process:
    """A child process that answers commands, one at a time. RuntimeError: it failed, died, or takes too long."""

    def __init__(self, contestant: Contestant, device: torch.device, log: Path):
        arguments = [contestant.module, str(device), json.dumps(contestant.arguments)]
        root = str(machine.ROOT)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        self.log = log  # a file: of a pipe that nobody empties, a talkative compiler would fill the 64 KB and wait
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.systems.child", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )

    def send(self, *command: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # receive() says that it ended
            print(json.dumps(command), file=self.process.stdin, flush=True)

    def receive(self, until: float) -> Json:
        """The answer to the command that was sent. until: a time of time.monotonic()."""
        seconds = None if until == math.inf else max(0.0, until - time.monotonic())
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise RuntimeError(LATE)
        line = self.process.stdout.readline()
        if not line:
            last = self.log.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"its process ended: {' '.join(last)}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # a command it did not live to read
            self.process.stdin.close()


class Turns:
    """The contestants of one table. Every row says what became of its contestant.

    baseline: whose first step the others' are compared with. progress: gets rounds + COMMANDS steps for each
    contestant, shown after `label`. folder: for gradients and what the processes say. until: the time of
    time.monotonic() at which a contestant that has not answered is given up; it may be changed. loss_limits: by
    precision, of losses' relative distance. To be left as a context, which ends the processes.
    """

    def __init__(
        self,
        contestants: Mapping[str, Contestant],
        baseline: str,
        device: torch.device,
        progress: Progress,
        folder: Path,
        label: str = "",
        until: float = math.inf,
        loss_limits: Mapping[str, float] = LOSS_LIMITS,
    ):
        self.loss_limits = loss_limits
        self.contestants, self.baseline, self.device = contestants, baseline, device
        self.progress, self.label, self.until = progress, label, until
        self.rows: Rows = {name: {"name": name, "status": "ok", "reason": "", "samples_s": []} for name in contestants}
        self.gradients = {name: folder / f"{label}{i}.pt" for i, name in enumerate(contestants)}
        self.running: dict[str, Process] = {}

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        for process in self.running.values():
            process.close()
        self.running.clear()

    def start(self, name: str) -> None:
        """Its process, which begins with the first step."""
        self.progress.show(f"{self.label}{name}: start")
        path = self.gradients[name]
        self.running[name] = Process(self.contestants[name], self.device, path.with_suffix(".log"))
        self.running[name].send("first", str(path))

    def first(self, name: str) -> None:
        """Waits for the first step, which warms up, too."""
        self._receive(name, "first")

    def compare(self) -> None:
        """What is wrong is not timed."""
        precisions = {name: c.precision for name, c in self.contestants.items()}
        judge(self.rows, self.gradients, self.baseline, precisions, self.loss_limits)
        for name in [name for name in self.running if self.rows[name]["status"] != "ok"]:
            self.running.pop(name).close()

    def ask(self, command: str) -> None:
        """Of all contestants, one after the other. Their answers go into their rows."""
        for name in list(self.running):
            self.running[name].send(command)
            self._receive(name, command)

    def step(self) -> None:
        """One sample of each."""
        self.ask("step")
        for row in self.rows.values():
            row["samples_s"] += [row.pop("seconds")] if "seconds" in row else []

    def _receive(self, name: str, command: str) -> None:
        self.progress.show(f"{self.label}{name}: {command}")
        try:
            self.rows[name] |= self.running[name].receive(self.until)
        except RuntimeError as error:
            self.rows[name] |= {"status": "error", "reason": str(error)}
            self.running.pop(name).close()
        self.progress.step()

    def summary(self) -> Rows:
        """All rows, with the spread of what was timed."""
        for row in self.rows.values():
            if row["samples_s"]:
                row |= dict(zip(("p20_s", "median_s", "p80_s"), spread(row["samples_s"])))
        return self.rows


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a while; with caches in it, so that compile times are those of a first compilation."""
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        yield Path(folder)


def measure(
    contestants: Mapping[str, Contestant],
    baseline: str,
    rounds: int,
    device: torch.device,
    progress: Progress,
    label: str = "",
) -> tuple[Rows, bool]:
    """(rows by name, whether Ctrl-C ended it)."""
    interrupted = False
    with scratch() as folder, Turns(contestants, baseline, device, progress, folder, label) as turns:
        try:
            for name in contestants:
                turns.start(name)
                turns.first(name)
            turns.compare()
            turns.ask("warm")
            for _ in range(rounds):
                turns.step()
            turns.ask("peak")
            turns.ask("share")
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted: reporting what was measured", file=sys.stderr)
    return turns.summary(), interrupted


def judge(
    rows: Rows,
    gradients: Mapping[str, Path],
    baseline: str,
    precisions: Mapping[str, str],
    loss_limits: Mapping[str, float] = LOSS_LIMITS,
) -> None:
    """Marks every row whose first losses or gradients are not those of the baseline."""
    found = {name: torch.load(path) if path.exists() else None for name, path in gradients.items()}
    exact, losses = found[baseline], rows[baseline].get("losses")
    for name, row in rows.items():
        if found[name] is None or row["status"] != "ok":
            continue
        if exact is None:
            row |= {"status": "error", "reason": f"nothing to compare with: the {baseline} failed"}
            continue
        precision = precisions[name]
        row["gradient_distance"] = {net: distance(found[name][net], want) for net, want in exact.items()}
        off = [f"gradient of {n}: {d:.2g}" for n, d in row["gradient_distance"].items() if not d <= LIMITS[precision]]
        for term, want in losses.items():
            if not abs(row["losses"][term] - want) <= loss_limits[precision] * max(abs(want), 0.1):
                off.append(f"{term}: {row['losses'][term]:.5g}, {baseline} {want:.5g}")
        if off:
            row |= {"status": "FAIL", "reason": "; ".join(off)}


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative, in the 2-norm. 0 where both gradients are 0: of networks that had no update in the first step."""
    return float((got - want).norm() / want.norm().clamp(min=torch.finfo(want.dtype).tiny))
