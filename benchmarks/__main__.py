"""Command line: `python -m benchmarks` measures a selection in a few minutes on two cores, `--full` everything."""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import kernels
from benchmarks.engine import machine, options, report
from benchmarks.engine.suite import SLOW_MS, SLOW_ROUNDS, Suite, run
from benchmarks.engine.work import FUSED, Json, Shape
from benchmarks.ops import contrastive, norm, resample
from kernels import _commands

ROUNDS, ROUNDS_FULL = 7, 20
SUITES = (norm.SUITE, contrastive.SUITE, resample.SUITE)
BASELINES = sorted({name for suite in SUITES for name in suite.about} - {FUSED})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the fused operators against stock PyTorch on this machine. "
        "Ctrl-C stops and reports what was measured.",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"every shape, torch.compile at far more of them and forward alone, {ROUNDS_FULL} rounds",
    )
    parser.add_argument(
        "--op",
        action="append",
        default=[],
        choices=[name for suite in SUITES for name in suite.operators],
        help="only this (repeatable)",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=_shape,
        help="NxCxHxW, or NxCxDxHxW, instead of the published ones (repeatable); norms only",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=BASELINES,
        help="leave out (repeatable); torch.compile stands for all that it compiles",
    )
    slow = f"at most {SLOW_ROUNDS} where one takes longer than {SLOW_MS / 1e3:g} s"
    options.add_arguments(
        parser,
        rounds=f"rounds per row (default {ROUNDS}, with --full {ROUNDS_FULL}; {slow})",
        files=f"the tables and plots, {', '.join(f'{suite.name}.*' for suite in SUITES)}",
    )
    asked = parser.parse_args(argv)
    served = {case.name for _, selected in chosen(asked) for case in selected}
    if missing := [name for name in asked.op if name not in served]:
        why = "measured at the published shapes only; norms alone take others, of as many dimensions as theirs"
        parser.error(f"--shape: {', '.join(missing)}: {why}")
    return asked


def chosen(asked: argparse.Namespace) -> list[tuple[Suite, Sequence[Any]]]:
    """The cases of each suite."""
    return [(suite, suite.cases(asked.full, asked.op, asked.shape)) for suite in SUITES]


def _shape(text: str) -> Shape:
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split("x"))
    if len(sizes) not in (4, 5) or min(sizes) < 1 or math.prod(sizes[2:]) < 2:
        wanted = "NxCxHxW like 1x64x256x256, or NxCxDxHxW, with more than one position"
        raise argparse.ArgumentTypeError(f"want {wanted}, got {text!r}")
    return sizes


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 when a fused result failed the correctness gate; 2 when it cannot begin; 130 after Ctrl-C."""
    return options.run(lambda: measure_and_report(parse(argv)))


def measure_and_report(asked: argparse.Namespace) -> int:
    device, folder = options.place(asked)
    paths: list[Path] = []
    results: list[Json] = []
    # with caches of its own, so that compile times are those of a first compilation
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as caches:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches
        for suite, selected in chosen(asked):
            if not selected:
                continue
            result = measure(suite, selected, asked, device)
            results.append(result)
            paths += report.write(suite, result, folder)
            report.print_summary(suite, result)
            if result["interrupted"]:
                break
    print("\n".join(str(path) for path in paths))
    if any(result["interrupted"] for result in results):
        return _commands.INTERRUPTED
    return int(any(f["provider"] == FUSED for result in results for f in result["summary"]["failures"]))


def measure(suite: Suite, selected: Sequence[Any], asked: argparse.Namespace, device: torch.device) -> Json:
    """The whole result, as it goes into the JSON. Ctrl-C ends the measuring, not the program."""
    rounds = asked.rounds or (ROUNDS_FULL if asked.full else ROUNDS)
    # as a trainer should: otherwise page faults of freshly mapped tensors outweigh the operators, everybody's alike
    kept = device.type == "cpu" and kernels.keep_freed_memory()
    began = machine.Run("benchmarks", device, gpu_clock="CUDA device time")
    load = machine.Load()
    rows: list[Json] = []
    extras = suite.extras([], device, asked.full)
    interrupted = False
    try:
        for row in run(suite, selected, device, rounds, asked.skip):
            rows.append(row)
        extras = suite.extras(selected, device, asked.full)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: reporting what was measured", file=sys.stderr)
    facts = {"full": asked.full, "rounds": rounds, "freed_memory_kept": kept}
    result = began.result(rows, interrupted, load.others(), **facts)
    return result | extras | {"summary": report.summarise(suite, rows)}


if __name__ == "__main__":
    sys.exit(main())
