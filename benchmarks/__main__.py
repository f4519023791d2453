"""Command line: `python -m benchmarks` measures a selection in a few minutes on two cores, `--full` everything."""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import kernels
from benchmarks.engine import machine, suite_report
from benchmarks.engine.bars import picture
from benchmarks.engine.report import SCHEMA, is_noisy, loss_line, summarise, write
from benchmarks.engine.runner import Json, run
from benchmarks.engine.suite import Suite
from benchmarks.engine.suite import run as run_suite
from benchmarks.ops import contrastive, resample
from benchmarks.ops.norm import FUSED, PROVIDERS
from benchmarks.ops.norm_cases import MODES, OPERATORS, Shape, cases
from kernels import _commands

ROUNDS, ROUNDS_FULL = 7, 20
SUITES = (contrastive.SUITE, resample.SUITE)
BASELINES = sorted({*(p.name for p in PROVIDERS), *(name for suite in SUITES for name in suite.about)} - {FUSED})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the fused operators against stock PyTorch on this machine. "
        "Ctrl-C stops and reports what was measured.",
    )
    parser.add_argument(
        "--full", action="store_true", help=f"every shape, torch.compile everywhere, {ROUNDS_FULL} rounds"
    )
    parser.add_argument(
        "--op",
        action="append",
        default=[],
        choices=[*(op.name for op in OPERATORS), *(name for suite in SUITES for name in suite.operators)],
        help="only this (repeatable)",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=_shape,
        help="NxCxHxW instead of the published ones (repeatable); norms only",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        choices=BASELINES,
        help="leave out (repeatable)",
    )
    parser.add_argument(
        "--rounds", type=_positive, help=f"rounds per row (default {ROUNDS}, with --full {ROUNDS_FULL})"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the tables and plots, ops.*, contrastive.* and resample.* (default runs/benchmarks/MACHINE)",
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"want a number >= 1, got {value}")
    return value


def _shape(text: str) -> Shape:
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split("x"))
    if len(sizes) != 4 or min(sizes) < 1 or sizes[2] * sizes[3] < 2:
        raise argparse.ArgumentTypeError(f"want NxCxHxW like 1x64x256x256 with H*W > 1, got {text!r}")
    return sizes


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 when a fused result failed the correctness gate; 130 after Ctrl-C."""
    return _commands.run(lambda: measure_and_report(argv))


def measure_and_report(argv: Sequence[str] | None) -> int:
    options = parse(argv)
    device = machine.ready(options.device)
    if device is None:
        return 2
    folder = options.output or Path("runs/benchmarks") / machine.slug(device)
    paths: list[Path] = []
    results: list[Json] = []
    # with caches of its own, so that compile times are those of a first compilation
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as caches:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches
        rooms = [(measure_norms, report_norms)]
        rooms += [(functools.partial(measure_suite, suite), functools.partial(report_suite, suite)) for suite in SUITES]
        for measure, report in rooms:
            result = measure(options, device)
            if result is None:
                continue
            results.append(result)
            paths += report(result, folder)
            if result["interrupted"]:
                break
    print("\n".join(str(path) for path in paths))
    if any(result["interrupted"] for result in results):
        return 130
    return int(any(f["provider"] == FUSED for result in results for f in result["summary"]["failures"]))


def measure_norms(options: argparse.Namespace, device: torch.device) -> Json | None:
    """The whole result, as it goes into the JSON; None where none of these operators was asked for."""
    selected = cases(options.full, options.op, options.shape)
    if not selected:
        return None
    providers = [provider for provider in PROVIDERS if provider.name not in options.skip]
    rounds = options.rounds or (ROUNDS_FULL if options.full else ROUNDS)
    result = _measure(options, device, rounds, lambda: run(selected, providers, device, rounds))
    return result | {"summary": summarise(result["rows"])}


def report_norms(result: Json, folder: Path) -> list[Path]:
    paths = write(result, folder, picture(result))
    _print_summary(result)
    return paths


def measure_suite(suite: Suite, options: argparse.Namespace, device: torch.device) -> Json | None:
    """The same of a suite; None where nothing of it was asked for, or shapes of the norms were."""
    selected = [] if options.shape else suite.cases(options.full, options.op)
    if not selected:
        return None
    rounds = options.rounds or ROUNDS
    result = _measure(options, device, rounds, lambda: run_suite(suite, selected, device, rounds, options.skip))
    extras = suite.extras([] if result["interrupted"] else selected, device, options.full)
    return result | extras | {"summary": suite_report.summarise(suite, result["rows"])}


def report_suite(suite: Suite, result: Json, folder: Path) -> list[Path]:
    paths = suite_report.write(suite, result, folder)
    suite_report.print_summary(suite, result)
    return paths


def _measure(
    options: argparse.Namespace, device: torch.device, rounds: int, measured: Callable[[], Iterator[Json]]
) -> Json:
    """Rows with all that is to be said of the run. Ctrl-C ends the measuring, not the program."""
    # as a trainer should: otherwise page faults of freshly mapped tensors outweigh the operators, everybody's alike
    kept = device.type == "cpu" and kernels.keep_freed_memory()
    provenance = machine.provenance(device)  # of the code that starts, not of an edit since
    load = machine.Load()
    start = time.perf_counter()
    rows: list[Json] = []
    interrupted = False
    try:
        for row in measured():
            rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: reporting what was measured", file=sys.stderr)
    return {
        "schema": SCHEMA,
        "kind": "CUDA device time" if device.type == "cuda" else "CPU wall time",
        "device": device.type,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": machine.command_line("benchmarks"),
        "full": options.full,
        "rounds": rounds,
        "seconds": time.perf_counter() - start,
        "interrupted": interrupted,
        "freed_memory_kept": kept,
        "other_load": load.others(),
        **provenance,
        "rows": rows,
    }


def _print_summary(result: Json) -> None:
    rows, summary = result["rows"], result["summary"]
    print(f"{result['kind']}, {len(rows)} rows in {result['seconds']:.0f} s")
    print("fused is so many times faster than (geometric mean, min to max):")
    for mode in MODES:
        for name, r in summary["speedups"].get(mode, {}).items():
            print(f"  {mode:8}{name:20}{r['geomean']:6.2f}x ({r['min']:.2f} to {r['max']:.2f}, {r['rows']} rows)")
    for loss in summary["losses"]:
        print(f"  {loss_line(loss)}")
    for failure in summary["failures"]:
        print(f"  {failure['status']} {failure['provider']}: {failure['row']}: {failure['reason']}")
    noisy = sum(map(is_noisy, rows))
    if noisy:
        print(f"other processes disturbed {noisy} of {len(rows)} rows; measure again on a quiet machine")


if __name__ == "__main__":
    sys.exit(main())
