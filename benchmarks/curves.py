"""What a CUT step costs as things grow: `python -m benchmarks.curves`. Seconds and peak memory against image side,
batch, patches and bank of negatives: ours, careful Python and the published form."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import zoo
from benchmarks.engine import machine, options
from benchmarks.engine.machine import Run
from benchmarks.engine.progress import Progress
from benchmarks.engine.work import Json
from benchmarks.systems import curve_report, turns
from benchmarks.systems.curve_points import AXES, Forecast, Point, forecast, free_bytes, groups, points, steps
from benchmarks.systems.stock import CAREFUL, OURS, PUBLISHED, StockMethod
from benchmarks.systems.stock_cut import CONTESTANTS
from benchmarks.systems.turns import LIMITS, Contestant, Rows, Turns, scratch
from i2i.methods.base import Method
from i2i.methods.cut import CUTConfig
from kernels import _commands

ROUNDS, MINUTES = 3, 25.0
NAMES = (PUBLISHED, CAREFUL, OURS)  # in the order in which they run; the others are compared with the first that fits
ASKED = 3  # commands to each contestant besides the timed ones: first, warm, peak
# G_GAN is taken after D's first update. In one of three draws of noise at 128 x 128 a unit of D crosses the kink of its
# ReLU by rounding, in any of the forms. That changes D's gradient by 2e-5 to 1e-4 of its norm, and through Adam's first
# step, which takes signs, G_GAN by 2e-4; at 256 x 256, where steps.py compares, one unit of four times as many.
LOSS_LIMITS = turns.LOSS_LIMITS | {"float32": 1e-3}
ENDED = "the run was ended before"


def contestant(
    device: str, name: str, precision: str, settings: Mapping[str, Any]
) -> tuple[Method | StockMethod, tuple[Tensor, ...], int]:
    """What child.py measures: (model, batch, steps at a time)."""
    config = CUTConfig(precision=precision, **settings)
    model = CONTESTANTS[name].build(config, torch.device(device))
    return model, tuple(images.to(device) for images in zoo.batch(config)), 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves",
        description="Measures seconds and peak memory of a CUT step against image side, batch, patches and bank of "
        "negatives, a process for each contestant, the cheapest points first. Points that fit neither the time nor the "
        "memory are left out and say so. Ctrl-C stops and reports what was measured.",
    )
    options.add_arguments(
        parser,
        f"turns of each contestant (default {ROUNDS}; fewer where steps are slow)",
        "curves.json, .md and .png, or curves_bfloat16.*",
        default=ROUNDS,
    )
    parser.add_argument("--minutes", type=_minutes, default=MINUTES, help=f"for everything (default {MINUTES:g})")
    parser.add_argument(
        "--precision",
        choices=LIMITS,
        default="float32",
        help="of ours and of careful Python; the published form is float32 (default float32)",
    )
    return parser.parse_args(argv)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, want a number of minutes above 0")
    return value


def main(
    argv: Sequence[str] | None = None, settings: Json | None = None, axes: Mapping[str, Sequence[int]] = AXES
) -> int:
    """0; 1 when a step of ours failed its gate; 2 when it cannot begin; 130 after Ctrl-C. `settings`, `axes`: other
    ones, for tests."""
    return options.run(lambda: measure_and_report(parse(argv), settings or {}, axes))


def measure_and_report(asked: argparse.Namespace, settings: Json, axes: Mapping[str, Sequence[int]]) -> int:
    device, folder = options.place(asked)
    run, interrupted = Run("benchmarks.curves", device), False
    until = time.monotonic() + 60 * asked.minutes
    planned = points(axes)
    rows = [
        {"point": point._asdict(), "label": point.label, "axes": on, "providers": {}, "not_measured": ENDED}
        for point, on in planned.items()
    ]
    for i, (point, row) in enumerate(zip(planned, rows)):
        foreseen = forecast(point, rows, NAMES, asked.rounds, device.type)
        if foreseen:
            row["predicted_s"] = foreseen.seconds
            row["not_measured"] = late(foreseen, until) or ENDED
        if row["not_measured"] == ENDED:
            print(told(i, list(planned), rows, until, asked.rounds, device), file=sys.stderr, flush=True)
            found, interrupted = measure(point, foreseen, asked, settings, device, until)
            row |= found
            write(run, rows, interrupted, asked, folder)  # after each: it is long
        if interrupted:
            break
    paths = write(run, rows, interrupted, asked, folder)
    print(curve_report.text(rows))
    print("\n".join(map(str, paths)))
    if interrupted:
        return _commands.INTERRUPTED
    return int(any(row["providers"].get(OURS, {}).get("status") in ("FAIL", "error") for row in rows))


def write(run: Run, rows: Sequence[Json], interrupted: bool, asked: argparse.Namespace, folder: Path) -> list[Path]:
    # no load of others for all: each point has its own
    result = run.result(rows, interrupted, other_load=None, precision=asked.precision, minutes=asked.minutes)
    return curve_report.write(result, folder)


def late(foreseen: Forecast, until: float) -> str:
    """Why there is no time for a point; "" where there is."""
    left = until - time.monotonic()
    return f"predicted {foreseen.seconds:.0f} s, {max(0, left):.0f} s left" if foreseen.seconds > left else ""


def told(
    i: int, planned: Sequence[Point], rows: Sequence[Json], until: float, rounds: int, device: torch.device
) -> str:
    """The line before a point: what it is, what it and the rest will take."""
    head = f"[{i + 1}/{len(planned)}] {planned[i].label}"
    rest = [forecast(point, rows, NAMES, rounds, device.type) for point in planned[i:]]
    if rest[0] is None:
        return head
    seconds, left = [each.seconds for each in rest if each], until - time.monotonic()
    return f"{head}: predicted {seconds[0]:.0f} s; all that is left {sum(seconds):.0f} s, of the time {left:.0f} s"


def measure(
    point: Point,
    foreseen: Forecast | None,
    asked: argparse.Namespace,
    settings: Json,
    device: torch.device,
    until: float,
) -> tuple[Json, bool]:
    """(figures of a point, whether Ctrl-C ended it)."""
    rounds = foreseen.rounds if foreseen else asked.rounds
    together, left = groups(foreseen.peak_bytes if foreseen else {}, NAMES, free_bytes(device))
    arguments = {"settings": point.settings() | settings}
    chosen = {
        name: Contestant("benchmarks.curves", arguments | {"name": name, "precision": precision}, precision)
        for group in together
        for name in group
        for precision in ["float32" if name == PUBLISHED else asked.precision]
    }
    found: Json = {"together": len(together) == 1, "rounds": rounds, "not_measured": ""}
    if not chosen:
        return found | {"not_measured": "; ".join(f"{name}: {why}" for name, why in left.items())}, False
    began, load = time.monotonic(), machine.Load()
    by_name, interrupted = in_groups(chosen, together, rounds, device, until)
    seconds = time.monotonic() - began
    others = load.others()  # the contestants have ended and are counted as ours
    inside = (row["first_step_s"] + row["median_s"] * (steps(rounds, device.type) - 1) for row in timed(by_name))
    found |= {
        "baseline": next(iter(chosen)),
        "seconds": seconds,
        "start_s": max(0.0, seconds - sum(inside)),
        "other_load": others,
        "noisy": device.type == "cpu" and others is not None and others > machine.SHARED,
    }
    if interrupted and not timed(by_name):
        return found | {"not_measured": ENDED}, True
    for name, why in left.items():
        by_name[name] = {"name": name, "status": "left out", "reason": why, "samples_s": []}
    curve_report.relate(by_name)
    return found | {"providers": by_name}, interrupted


def timed(by_name: Rows) -> list[Json]:
    return [row for row in by_name.values() if "median_s" in row]


def in_groups(
    chosen: Mapping[str, Contestant],
    together: Sequence[Sequence[str]],
    rounds: int,
    device: torch.device,
    until: float,
) -> tuple[Rows, bool]:
    """(rows by name, whether Ctrl-C ended it). In turn within a group; a group's processes end before the next one's
    begin. No turn begins after `until` but the first."""
    progress, interrupted = Progress(len(chosen) * (rounds + ASKED)), False
    baseline = next(iter(chosen))
    with scratch() as folder, Turns(chosen, baseline, device, progress, folder, loss_limits=LOSS_LIMITS) as table:
        try:
            for group in together:
                for name in group:
                    table.start(name)
                    table.first(name)
                table.compare()
                table.ask("warm")
                for i in range(rounds):
                    if i and time.monotonic() > until:
                        break
                    table.step()
                table.ask("peak")
                table.close()
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted: reporting what was measured", file=sys.stderr)
    progress.close()
    return table.summary(), interrupted


if __name__ == "__main__":
    sys.exit(main())
