"""Whole training steps: `python -m benchmarks.steps`. CUT at 256 x 256, batch 1, in every way a user might run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import kernels
from benchmarks.engine import options
from benchmarks.engine.machine import Run
from benchmarks.engine.progress import Progress
from benchmarks.engine.work import Json
from benchmarks.systems import step_report
from benchmarks.systems.stock import OURS, PUBLISHED, available
from benchmarks.systems.stock_cut import CONTESTANTS
from benchmarks.systems.turns import COMMANDS, LIMITS, Contestant, measure
from i2i.devices import format_name
from kernels import _commands

ROUNDS = 5


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description="Measures whole CUT training steps, batch 1, against stock PyTorch on this machine, a process for "
        "each contestant. Ctrl-C stops and reports what was measured.",
    )
    options.add_arguments(
        parser, f"turns of each contestant (default {ROUNDS})", "step.json, .md and .png", default=ROUNDS
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default 256)")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=[name for name in CONTESTANTS if name not in (OURS, PUBLISHED)],
        help="leave out (repeatable)",
    )
    asked = parser.parse_args(argv)
    if asked.size < 64 or asked.size % 4:
        parser.error(f"--size: got {asked.size}, want a multiple of 4, at least 64")
    return asked


def main(argv: Sequence[str] | None = None, networks: Json | None = None) -> int:
    """0; 1 when ours failed its gate; 2 when it cannot begin; 130 after Ctrl-C. `networks`: other settings than CUT's,
    for tests."""
    return options.run(lambda: measure_and_report(parse(argv), networks or {}))


def measure_and_report(asked: argparse.Namespace, networks: Json) -> int:
    device, folder = options.place(asked)
    run = Run("benchmarks.steps", device)
    chosen = contestants(
        [name for name in available(CONTESTANTS, device) if name not in asked.skip], asked.size, networks
    )
    progress = Progress(len(chosen) * (asked.rounds + COMMANDS))
    by_name, interrupted = measure(chosen, PUBLISHED, asked.rounds, device, progress)
    progress.close()
    rows = list(by_name.values())
    # no load of others: the contestants are other processes themselves
    forms = {p: format_name(kernels.preferred_memory_format(device, getattr(torch, p))) for p in LIMITS}
    result = run.result(rows, interrupted, other_load=None, size=asked.size, memory_formats=forms)
    step_report.relate(rows)
    paths = step_report.write(result, folder)
    print(step_report.text(rows))
    print("\n".join(map(str, paths)))
    if interrupted:
        return _commands.INTERRUPTED
    return int(any(row["name"].startswith(OURS) and row["status"] != "ok" for row in rows))


def contestants(names: Sequence[str], size: int, networks: Json) -> dict[str, Contestant]:
    arguments = {"size": size, "networks": networks}
    module = "benchmarks.systems.stock_cut"
    return {name: Contestant(module, arguments | {"name": name}, CONTESTANTS[name].precision) for name in names}


if __name__ == "__main__":
    sys.exit(main())
