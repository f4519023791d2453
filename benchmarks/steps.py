"""Whole training steps: `python -m benchmarks.steps`. CUT at 256 x 256, batch 1, in every way a user might run it.

Each contestant lives in a process of its own (step_child.py) and does one step when it is its turn: rounds are
interleaved and peak memory is honest. Nothing is timed whose first losses and gradients do not agree with the published
form's.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, step_report
from benchmarks.measure import spread
from benchmarks.progress import Progress
from benchmarks.report import SCHEMA
from benchmarks.step_methods import METHODS, OURS, PUBLISHED

Json = dict[str, Any]

ROUNDS = 5
# Relative distance of the first step's gradients from the published form's in float32. Between two float32 forms it is
# the conditioning of 23 norms in a row (1e-3 here); of bfloat16 ones 0.2, so twice that.
LIMITS = {"float32": 1e-2, "bfloat16": 0.4}
LOSS_LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}


class Contestant:
    """A child process; every call is a command and waits for its answer. RuntimeError: it failed, or died."""

    def __init__(self, name: str, size: int, device: str, options: Json, log: Path):
        command = [sys.executable, "-m", "benchmarks.step_child", name, str(size), device, json.dumps(options)]
        root = str(machine.ROOT)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        self.log = log  # a file: of a pipe that nobody empties, a talkative compiler would fill the 64 KB and wait
        with open(log, "w") as stderr:
            self.process = subprocess.Popen(
                command,
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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description="Measures whole CUT training steps, batch 1, against stock PyTorch on this machine, a process for "
        "each contestant. Ctrl-C stops and reports what was measured.",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"steps of each contestant (default {ROUNDS})")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default 256)")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=[name for name in METHODS if name not in (OURS, PUBLISHED)],
        help="leave out (repeatable)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--output", type=Path, help="folder for step.json, .md and .png (default runs/benchmarks/MACHINE)"
    )
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds: got {options.rounds}, want a number >= 1")
    if options.size < 64 or options.size % 4:
        parser.error(f"--size: got {options.size}, want a multiple of 4, at least 64")
    return options


def main(argv: Sequence[str] | None = None, networks: Json | None = None) -> int:
    """0; 1 when ours failed its gate; 130 after Ctrl-C. `networks`: other sizes than CUT's (Config), for tests."""
    options = parse(argv)
    device = machine.ready(options.device)
    if device is None:
        return 2
    names = [name for name in METHODS if name not in options.skip]
    start, provenance = time.perf_counter(), machine.provenance(device)  # of the code that starts, not of an edit since
    rows, interrupted = measure(names, options.size, options.rounds, device, networks or {})
    result = {
        "schema": SCHEMA,
        "kind": "CUDA time" if device.type == "cuda" else "CPU wall time",
        "device": device.type,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": machine.command_line("benchmarks.steps"),
        "size": options.size,
        "seconds": time.perf_counter() - start,
        "interrupted": interrupted,
        "other_load": None,  # the contestants are other processes themselves
        **provenance,
        "rows": rows,
    }
    step_report.relate(rows)
    folder = options.output or Path("runs/benchmarks") / machine.slug(device)
    print(step_report.text(rows))
    print("\n".join(str(path) for path in step_report.write(result, folder)))
    if interrupted:
        return 130
    return int(any(row["name"].startswith(OURS) and row["status"] != "ok" for row in rows))


def measure(names: Sequence[str], size: int, rounds: int, device: torch.device, networks: Json):
    """(rows, whether Ctrl-C ended it). Every row says what became of its contestant."""
    rows = {name: {"name": name, "status": "ok", "reason": "", "samples_s": []} for name in names}
    running: dict[str, Contestant] = {}
    progress = Progress(len(names) * (rounds + 4))  # first, the one that warms up, peak, share
    interrupted = False

    def ask(name: str, *command: object) -> Json | None:
        progress.show(f"{name}: {command[0]}")
        try:
            return running[name](*command)
        except RuntimeError as error:
            rows[name] |= {"status": "error", "reason": str(error)}
            running.pop(name).close()
            return None
        finally:
            progress.step()

    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # so that compile times are those of a first compilation
        try:
            for name in names:
                progress.show(f"{name}: start")
                log = Path(folder) / f"{names.index(name)}.log"
                running[name] = Contestant(name, size, str(device), networks, log)
                answer = ask(name, "first", str(Path(folder) / f"{names.index(name)}.pt"))
                if answer:
                    rows[name] |= {"first_step_s": answer["seconds"], "losses": answer["losses"]}
            judge(rows, [Path(folder) / f"{i}.pt" for i in range(len(names))])
            for name in [name for name in running if rows[name]["status"] != "ok"]:
                running.pop(name).close()  # what is wrong is not timed
            for _ in range(rounds + 1):  # the first of them warms up
                for name in list(running):
                    answer = ask(name, "step")
                    if answer:
                        rows[name]["samples_s"].append(answer["seconds"])
            for name in list(running):
                peak = ask(name, "peak")
                rows[name] |= peak or {}
            for name in list(running):
                rows[name] |= ask(name, "share") or {}
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted: reporting what was measured", file=sys.stderr)
        finally:
            progress.close()
            for contestant in running.values():
                contestant.close()
    for row in rows.values():
        row["samples_s"] = row["samples_s"][1:]
        if row["samples_s"]:
            row |= dict(zip(("p20_s", "median_s", "p80_s"), spread(row["samples_s"])))
    return list(rows.values()), interrupted


def judge(rows: dict[str, Json], files: Sequence[Path]) -> None:
    """Marks every row whose first losses or gradients are not those of the published form."""
    found = {name: torch.load(path) if path.exists() else None for name, path in zip(rows, files)}
    exact, losses = found[PUBLISHED], rows[PUBLISHED].get("losses")
    for name, row in rows.items():
        if found[name] is None or row["status"] != "ok":
            continue
        if exact is None:
            row |= {"status": "error", "reason": f"nothing to compare with: the {PUBLISHED} failed"}
            continue
        precision = METHODS[name].precision
        row["gradient_distance"] = {net: float((found[name][net] - g).norm() / g.norm()) for net, g in exact.items()}
        off = [f"gradient of {n}: {d:.2g}" for n, d in row["gradient_distance"].items() if not d <= LIMITS[precision]]
        for term, want in losses.items():
            distance = abs(row["losses"][term] - want)
            if not distance <= LOSS_LIMITS[precision] * max(abs(want), 0.1):
                off.append(f"{term}: {row['losses'][term]:.5g}, published {want:.5g}")
        if off:
            row |= {"status": "FAIL", "reason": "; ".join(off)}


if __name__ == "__main__":
    sys.exit(main())
