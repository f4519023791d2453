"""What the tables of whole training steps share: contestants in turn, and a gate before the timing.

Each contestant lives in a process of its own (child.py) and steps when it is its turn: rounds are interleaved and
peak memory is honest. Nothing is timed whose first losses and gradients do not agree with the
baseline's (the published form; in the zoo plain torch).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
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
COMMANDS = 3  # to each contestant besides those that are timed: the first step, peak, share


class Contestant(NamedTuple):
    """MODULE.contestant(device, **arguments), and whose limits it is held to."""

    module: str
    arguments: Json
    precision: str


class Process:
    """A child process; every call is a command and waits for its answer. RuntimeError: it failed, or died."""

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

    def __call__(self, *command: object) -> Json:
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
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


def measure(
    contestants: Mapping[str, Contestant],
    baseline: str,
    rounds: int,
    device: torch.device,
    progress: Progress,
    label: str = "",
) -> tuple[Rows, bool]:
    """(rows by name, whether Ctrl-C ended it). Every row says what became of its contestant.

    baseline: whose first step the others' are compared with. progress: gets rounds + COMMANDS steps for each
    contestant, shown after `label`.
    """
    rows = {name: {"name": name, "status": "ok", "reason": "", "samples_s": []} for name in contestants}
    running: dict[str, Process] = {}
    interrupted = False

    def ask(name: str, *command: object) -> Json:
        """The answer; empty where there is none, and the row then says why."""
        progress.show(f"{label}{name}: {command[0]}")
        try:
            return running[name](*command)
        except RuntimeError as error:
            rows[name] |= {"status": "error", "reason": str(error)}
            running.pop(name).close()
            return {}
        finally:
            progress.step()

    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # so that compile times are those of a first compilation
        gradients = {name: Path(folder) / f"{i}.pt" for i, name in enumerate(contestants)}
        try:
            for name, contestant in contestants.items():
                progress.show(f"{label}{name}: start")
                running[name] = Process(contestant, device, gradients[name].with_suffix(".log"))
                rows[name] |= ask(name, "first", str(gradients[name]))  # which warms up, too
            judge(rows, gradients, baseline, {name: c.precision for name, c in contestants.items()})
            for name in [name for name in running if rows[name]["status"] != "ok"]:
                running.pop(name).close()  # what is wrong is not timed
            for _ in range(rounds):
                for name in list(running):
                    answer = ask(name, "step")
                    rows[name]["samples_s"] += answer.values()
            for command in ("peak", "share"):
                for name in list(running):
                    rows[name] |= ask(name, command)
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted: reporting what was measured", file=sys.stderr)
        finally:
            for process in running.values():
                process.close()
    for row in rows.values():
        if row["samples_s"]:
            row |= dict(zip(("p20_s", "median_s", "p80_s"), spread(row["samples_s"])))
    return rows, interrupted


def judge(rows: Rows, gradients: Mapping[str, Path], baseline: str, precisions: Mapping[str, str]) -> None:
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
            if not abs(row["losses"][term] - want) <= LOSS_LIMITS[precision] * max(abs(want), 0.1):
                off.append(f"{term}: {row['losses'][term]:.5g}, {baseline} {want:.5g}")
        if off:
            row |= {"status": "FAIL", "reason": "; ".join(off)}


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative, in the 2-norm. 0 where both gradients are 0: of networks that had no update in the first step."""
    return float((got - want).norm() / want.norm().clamp(min=torch.finfo(want.dtype).tiny))
