"""Training steps that others wrote: `python -m benchmarks.foreign --cut DIR --cyclegan DIR --munit DIR --stargan DIR`.

The published trainers' own step, in checkouts of yours, stock against the lines of ours that a user adds; and networks
of packages, where those are installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.engine import options
from benchmarks.engine.machine import Run
from benchmarks.engine.progress import Progress
from benchmarks.outside import report
from benchmarks.outside.lines import BFLOAT16, FLOAT32
from benchmarks.outside.measure import measure, steps
from benchmarks.outside.trainers import OPTIONS, TRAINERS, chosen
from i2i.errors import UsageError
from kernels import _commands

ROUNDS = 5


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.foreign",
        description="Measures training steps of published trainers in checkouts of yours, stock against fuse and "
        "accelerate, after comparing losses, gradients, three updates and checkpoints in float64. Nothing of a "
        "checkout is changed. Ctrl-C stops and reports what was measured.",
    )
    for name in OPTIONS:
        title = TRAINERS[name].title
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"a checkout of {title}'s published code")
    parser.add_argument(
        "--packages",
        action="store_true",
        help="MONAI's DynUNet, nnU-Net's two U-Nets, segmentation-models-pytorch's Unet; those that are installed",
    )
    parser.add_argument("--size", type=int, help="side of the pictures (default as published: 256, StarGAN 128)")
    parser.add_argument("--voxels", type=int, default=64, help="side of the patches of 3-D networks (default 64)")
    parser.add_argument("--batch", type=_positive, help="(default as published; of StarGAN a quarter)")
    parser.add_argument("--threads", type=_positive, help="of torch on the CPU (default torch's)")
    parser.add_argument(
        "--precision",
        action="append",
        choices=(FLOAT32, BFLOAT16),
        help="a table for it (repeatable; default both, where the processor has bfloat16)",
    )
    options.add_arguments(
        parser, f"steps of each contestant (default {ROUNDS})", "foreign.json and .md", default=ROUNDS
    )
    asked = parser.parse_args(argv)
    if not (asked.packages or any(vars(asked)[name] for name in OPTIONS)):
        parser.error(f"want --packages, or a checkout with {', '.join('--' + name for name in OPTIONS)}")
    for name in ("size", "voxels"):
        value, least = vars(asked)[name], 64 if name == "size" else 16
        if value is not None and (value < least or value % least):
            parser.error(f"--{name}: got {value}, want a multiple of {least}")
    return asked


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, want a number >= 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 when a line of ours computed something else or did not run; 2 when it cannot begin; 130 after Ctrl-C."""
    return options.run(lambda: measure_and_report(parse(argv)))


def measure_and_report(asked: argparse.Namespace) -> int:
    folders = {name: vars(asked)[name] for name in OPTIONS}
    names, left = chosen(folders, asked.packages)
    if not names:
        raise UsageError("nothing to measure: " + "; ".join(left))
    device, folder = options.place(asked, plots=False)
    precisions, why = default_precisions(device)
    if asked.precision:
        precisions = list(dict.fromkeys(asked.precision))
    elif why:
        left.append(why)
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)  # said in the report; the children set their own
    run, rows, interrupted = Run("benchmarks.foreign", device), [], False
    progress = Progress(sum(steps(name, precisions, asked.rounds) for name in names))
    for line in left:
        progress.note(line)
    paths: list[Path] = []
    for name in names:
        arguments = of(name, asked, folders)
        row, interrupted = measure(name, arguments, precisions, asked.rounds, device, progress)
        rows.append(row)
        # no load of others: the contestants are other processes themselves
        more = {"rounds": asked.rounds, "left": left}
        paths = report.write(run.result(rows, interrupted, other_load=None, **more), folder)  # after each: it is long
        progress.note(report.text(row))
        if interrupted:
            break
    progress.close()
    print("\n".join(map(str, paths)))
    if interrupted:
        return _commands.INTERRUPTED
    return int(any(map(report.failed, rows)))


def default_precisions(device: torch.device) -> tuple[list[str], str]:
    """(precisions, why one is left out). Without AVX-512 torch emulates bfloat16: a step of CUT at 64 x 64 took 85 s
    there, and 2.2 s in float32."""
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return [FLOAT32], "bfloat16: left out on a processor that emulates it; --precision bfloat16 measures it"
    return [FLOAT32, BFLOAT16], ""


def of(name: str, asked: argparse.Namespace, folders: dict[str, Path | None]) -> dict[str, object]:
    """Arguments of outside/child.py's contestant for this trainer."""
    trainer = TRAINERS[name]
    checkout = folders.get(trainer.option)
    size = asked.voxels if trainer.voxels else asked.size or trainer.size
    return {
        "trainer": name,
        "checkout": "" if checkout is None else os.path.abspath(checkout),
        "size": size,
        "batch": asked.batch or trainer.batch,
        "threads": asked.threads,
    }


if __name__ == "__main__":
    sys.exit(main())
