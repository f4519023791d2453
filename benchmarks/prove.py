"""Every claim about a GPU, put to the test in ten minutes: `python -m benchmarks.prove --device cuda`. With
`--device cpu` the same logic on small sizes, without what needs a GPU."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.engine import machine, options
from benchmarks.engine.machine import Run
from benchmarks.engine.work import Json
from benchmarks.proof import device_tests, launches, operators, report, sanitizer, steps, training
from benchmarks.proof.part import BAD, INTERRUPTED, Part, run_part, share
from benchmarks.proof.targets import MISSED, checks
from kernels import _commands, _cuda

MINUTES = 9.5  # of all parts together, which leaves half a minute of ten for the rest
# On a CPU: what shows that everything works, and no figure.
SMALL = {
    "CUT": {"ngf": 8, "ndf": 8, "generator": "resnet_6blocks", "num_patches": 64},
    "CycleGAN": {"ngf": 8, "ndf": 8, "generator": "resnet_6blocks"},
    "MUNIT": {"ngf": 8, "ndf": 8, "mlp_dim": 32, "n_res": 2},
}

# Seconds are shares of the time: what one part leaves over goes to those behind it.
PARTS = {
    part.name: part
    for part in (
        Part(
            "tests",
            "the tests marked gpu",
            120,
            True,
            device_tests.run,
            {"cuda": {"paths": ["tests/kernels", "tests/i2i", "tests/benchmarks"], "workers": device_tests.workers()}},
        ),
        Part(
            "sanitizer",
            "compute-sanitizer's memcheck and racecheck on small calls of every kernel",
            70,
            True,
            sanitizer.run,
            {"cuda": {"impl": "cuda"}},
        ),
        Part(
            "operators",
            "every operator against stock code and a copy",
            150,
            False,
            operators.run,
            {
                "cuda": {"shapes": (), "rounds": 7, "compile": True},
                "cpu": {
                    "shapes": [(2, 8, 33, 31)],
                    "ops": ["instance_norm_relu", "adain"],
                    "rounds": 3,
                    "compile": False,
                },
            },
        ),
        Part(
            "launches",
            "host time of a call, launches of a call",
            15,
            False,
            launches.run,
            {"cuda": {"repeats": 60}, "cpu": {"repeats": 10}},
        ),
        Part(
            "steps",
            "training steps of CUT, CycleGAN and MUNIT",
            180,
            False,
            steps.run,
            {
                "cuda": {"systems": {system: {} for system in steps.SYSTEMS}, "size": 256, "rounds": 7},
                "cpu": {"systems": SMALL, "size": 64, "rounds": 2},
            },
        ),
        Part(
            "training",
            "a run of the trainer that has to learn",
            35,
            False,
            training.run,
            {
                "cuda": {
                    "precisions": ["float32", "bfloat16"],
                    "steps": 300,
                    "settings": {},
                },
                "cpu": {"precisions": ["float32"], "steps": 300, "settings": {}},
            },
        ),
    )
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prove",
        description="Tests and measures on this machine's GPU what is claimed of it, part by part; none stops another. "
        "Ctrl-C ends it and reports what was measured.",
        epilog="\n".join(f"{part.name}: {part.about}" for part in PARTS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", action="append", default=[], choices=PARTS, help="only this (repeatable)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"for all parts together (default {MINUTES:g}); shared by the chosen",
    )
    options.add_place(parser, "proof.json, .md and .png")
    asked = parser.parse_args(argv)
    if not 0 < asked.minutes < 1e4:
        parser.error(f"--minutes: got {asked.minutes:g}, want a number above 0")
    return asked


def main(argv: Sequence[str] | None = None, sizes: Mapping[str, Json] | None = None) -> int:
    """0; 1 when a part failed or ran out of time, or a target was missed; 2 when it cannot begin; 130 after Ctrl-C.
    What is not possible on this machine is told, and is no failure. `sizes`: by part, other ones, for tests."""
    return options.run(lambda: prove(parse(argv), sizes or {}))


def prove(asked: argparse.Namespace, sizes: Mapping[str, Json]) -> int:
    device, folder = options.place(asked)
    until = time.monotonic() + 60 * asked.minutes
    run = Run("benchmarks.prove", device, "CUDA device time")
    left = [part for part in PARTS.values() if not asked.part or part.name in asked.part]
    parts: dict[str, Json] = {}
    paths: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="proof-", ignore_cleanup_errors=True) as scratch:
        while left and not interrupted(parts):
            part, seconds = left[0], share(left, until - time.monotonic())
            print(f"{part.name}: {part.about}, at most {seconds:.0f} s", file=sys.stderr, flush=True)
            parts[part.name] = run_part(part, device, seconds, Path(scratch), sizes.get(part.name))
            found = parts[part.name]
            told = f": {found['reason']}" if found["reason"] else ""
            print(f"{part.name}: {found['status']} after {found['seconds']:.0f} s{told}", flush=True)
            left.pop(0)
            paths = report.write(outcome(run, parts, device), folder)  # now: who knows what ends this process
    result = outcome(run, parts, device)
    print("\n".join([report.verdict(result), *map(str, paths)]))
    if result["interrupted"]:
        return _commands.INTERRUPTED
    return int(
        any(part["status"] in BAD for part in parts.values()) or any(c["status"] == MISSED for c in result["rows"])
    )


def interrupted(parts: Mapping[str, Json]) -> bool:
    return any(part["status"] == INTERRUPTED for part in parts.values())


def outcome(run: Run, parts: Mapping[str, Json], device: torch.device) -> Json:
    """The whole result, as it goes into the JSON; its rows are the targets."""
    return run.result(
        checks(parts, device.type),
        interrupted(parts),
        other_load=None,  # the parts are other processes themselves
        parts=parts,
        gpu_after=machine.machine(device).get("gpu"),
        cuda=_cuda.report(),
    )


if __name__ == "__main__":
    sys.exit(main())
