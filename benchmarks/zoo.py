"""A training step of every published system: `python -m benchmarks.zoo`. The same code on the fused operators and on
the same operators in plain torch, at the published defaults."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.engine import machine
from benchmarks.engine.progress import Progress
from benchmarks.ops.norm import FUSED
from benchmarks.systems import zoo_report
from benchmarks.systems.turns import COMMANDS, LIMITS, Entry, Json, Run, add_arguments, measure
from benchmarks.systems.zoo_report import PLAIN
from i2i.config import Config
from i2i.data.labelled import LABELLED_MODES
from i2i.methods import METHODS, Method
from kernels import _commands

ROUNDS = 2  # on two cores some two and a half minutes each for all methods, and steps vary by less than 1 %
IMPLS = {FUSED: "auto", PLAIN: "reference"}


class Case(NamedTuple):
    """What is measured of a method where a step at its published defaults is not the whole answer."""

    turn: int = 1  # steps until all networks had their updates; measured together, reported per step
    changes: Json = {}


CASES = {
    "discogan": Case(turn=3),
    # A turn at the defaults is 2.3e12 multiplications, some 24 s on two cores; these are a quarter of that.
    "stargan": Case(turn=5, changes={"batch_size": 4}),
    "matchgan": Case(turn=5, changes={"crop_size": 64}),  # whose batches are 16 images, always
}


def contestant(
    device: str, method: str, impl: str, precision: str, settings: Json
) -> tuple[Method, tuple[Tensor, ...], int]:
    """What child.py measures: (model, batch, steps at a time). The model stands at the last step of a turn, so
    that what the gate sees has the generators' gradients."""
    case = CASES.get(method, Case())
    config = METHODS[method].Config(**case.changes | {"precision": precision} | settings)
    model = METHODS[method](config, device, impl)
    if case.turn > 1:
        model.load_extra_state(model.extra_state() | {"iteration": case.turn - 1})
    return model, tuple(tensor.to(device) for tensor in batch(config)), case.turn


def batch(config: Config) -> tuple[Tensor, ...]:
    """Noise in the shapes of the method's data set: images of two domains; or images, and labels of four classes, those
    of a class together."""
    generator = torch.Generator().manual_seed(0)
    count, size = config.batch_size, config.crop_size

    def images(channels: int) -> Tensor:
        return torch.rand(count, channels, size, size, generator=generator) * 2 - 1

    if config.dataset_mode in LABELLED_MODES:
        return images(config.input_nc), config.label_space().table()[torch.arange(count) * 4 // count]
    return images(config.input_nc), images(config.output_nc)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo",
        description="Measures training steps of the published systems, on the fused operators and in plain torch, a "
        "process for each of the two. Ctrl-C stops and reports what was measured.",
    )
    add_arguments(parser, ROUNDS, "zoo.json, .md and .png")
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between (default all)")
    parser.add_argument("--precision", choices=LIMITS, default="float32", help="of convolutions and maps")
    options = parser.parse_args(argv)
    options.methods = list(dict.fromkeys(options.methods.split(",")))
    for name in options.methods:
        if name not in METHODS:
            parser.error(f"--methods: got {name!r}, want of {', '.join(METHODS)}")
    return options


def main(argv: Sequence[str] | None = None, settings: Mapping[str, Json] | None = None) -> int:
    """0; 1 when a fused step failed its gate; 130 after Ctrl-C. `settings`: by method, other ones, for tests."""
    options = parse(argv)
    device = machine.ready(options.device)
    if device is None:
        return 2
    run, rows, interrupted = Run("benchmarks.zoo", device), [], False
    progress = Progress(len(options.methods) * len(IMPLS) * (options.rounds + COMMANDS))
    for name in options.methods:
        arguments = {"method": name, "precision": options.precision, "settings": (settings or {}).get(name, {})}
        entries = {
            provider: Entry("benchmarks.zoo", arguments | {"impl": impl}, options.precision)
            for provider, impl in IMPLS.items()
        }
        providers, interrupted = measure(entries, PLAIN, options.rounds, device, progress, f"{name}, ")
        case = CASES.get(name, Case())
        zoo_report.relate(providers)
        rows.append({"method": name, "turn": case.turn, "changes": case.changes, "providers": providers})
        if interrupted:
            break
    progress.close()
    result = run.result(rows, interrupted, precision=options.precision)
    paths = zoo_report.write(result, options.output or Path("runs/benchmarks") / machine.slug(device))
    print(zoo_report.text(rows))
    print("\n".join(map(str, paths)))
    if interrupted:
        return 130
    return int(any(row["providers"][FUSED]["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(_commands.run(main))
