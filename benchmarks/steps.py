"""Whole training steps: `python -m benchmarks.steps`. CUT at 256 x 256, batch 1, in every way a user might run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine import machine
from benchmarks.engine.progress import Progress
from benchmarks.systems import step_report
from benchmarks.systems.stock_cut import METHODS, OURS, PUBLISHED
from benchmarks.systems.turns import COMMANDS, Entry, Json, Run, add_arguments, measure
from kernels import _commands

ROUNDS = 5


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.steps",
        description="Measures whole CUT training steps, batch 1, against stock PyTorch on this machine, a process for "
        "each contestant. Ctrl-C stops and reports what was measured.",
    )
    add_arguments(parser, ROUNDS, "step.json, .md and .png")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default 256)")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=[name for name in METHODS if name not in (OURS, PUBLISHED)],
        help="leave out (repeatable)",
    )
    options = parser.parse_args(argv)
    if options.size < 64 or options.size % 4:
        parser.error(f"--size: got {options.size}, want a multiple of 4, at least 64")
    return options


def main(argv: Sequence[str] | None = None, networks: Json | None = None) -> int:
    """0; 1 when ours failed its gate; 130 after Ctrl-C. `networks`: other settings than CUT's, for tests."""
    options = parse(argv)
    device = machine.ready(options.device)
    if device is None:
        return 2
    run = Run("benchmarks.steps", device)
    entries = contestants([name for name in METHODS if name not in options.skip], options.size, networks or {})
    progress = Progress(len(entries) * (options.rounds + COMMANDS))
    by_name, interrupted = measure(entries, PUBLISHED, options.rounds, device, progress)
    progress.close()
    rows = list(by_name.values())
    result = run.result(rows, interrupted, size=options.size)
    step_report.relate(rows)
    paths = step_report.write(result, options.output or Path("runs/benchmarks") / machine.slug(device))
    print(step_report.text(rows))
    print("\n".join(map(str, paths)))
    if interrupted:
        return 130
    return int(any(row["name"].startswith(OURS) and row["status"] != "ok" for row in rows))


def contestants(names: Sequence[str], size: int, networks: Json) -> dict[str, Entry]:
    arguments = {"size": size, "networks": networks}
    return {
        name: Entry("benchmarks.systems.stock_cut", arguments | {"name": name}, METHODS[name].precision)
        for name in names
    }


if __name__ == "__main__":
    sys.exit(_commands.run(main))
