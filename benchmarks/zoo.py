"""A training step of every published system: `python -m benchmarks.zoo`. The same code on the fused operators and on
the same operators in plain torch, at the published defaults; for CUT, FastCUT, CycleGAN and MUNIT also stock code, as
published and as written with care."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from benchmarks.engine import options
from benchmarks.engine.machine import Run
from benchmarks.engine.progress import Progress
from benchmarks.engine.work import FUSED, Json
from benchmarks.systems import stock_cut, stock_cyclegan, stock_munit, zoo_report
from benchmarks.systems.stock import CAREFUL, PUBLISHED, StockMethod
from benchmarks.systems.turns import COMMANDS, LIMITS, Contestant, measure
from benchmarks.systems.zoo_report import PLAIN
from i2i.config import Config
from i2i.data.labelled import LABELLED_MODES
from i2i.devices import format_name
from i2i.methods import METHODS, Method
from kernels import _commands

ROUNDS = 2  # on two cores some two and a half minutes each for all methods, and steps vary by less than 1 %
IMPLS = {FUSED: "auto", PLAIN: "reference"}
STYLES = (PUBLISHED, CAREFUL)  # those of the stock contestants that are shown here
STOCK = {  # systems whose step there is in stock torch; of the others nobody has written one yet
    "cut": stock_cut.CONTESTANTS,
    "fastcut": stock_cut.CONTESTANTS,
    "cyclegan": stock_cyclegan.CONTESTANTS,
    "munit": stock_munit.CONTESTANTS,
}


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


def names(method: str) -> list[str]:
    """The contestants of a method."""
    return [*IMPLS, *(STYLES if method in STOCK else ())]


def contestant(
    device: str, method: str, name: str, precision: str, settings: Json
) -> tuple[Method | StockMethod, tuple[Tensor, ...], int]:
    """What child.py measures: (model, batch, steps at a time). The model stands at the last step of a turn, so
    that what the gate sees has the generators' gradients."""
    case = CASES.get(method, Case())
    config = METHODS[method].Config(**case.changes | {"precision": precision} | settings)
    if name in STYLES:
        model = STOCK[method][name].build(config, torch.device(device))
    else:
        model = METHODS[method](config, device, IMPLS[name])
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
        description="Measures training steps of the published systems, on the fused operators and in plain torch (CUT, "
        "FastCUT, CycleGAN and MUNIT also in stock code), a process for each contestant. Ctrl-C stops and reports what "
        "was measured.",
    )
    options.add_arguments(
        parser,
        f"turns of each contestant (default {ROUNDS})",
        "zoo.json, .md and .png, or zoo_bfloat16.*",
        default=ROUNDS,
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between (default all)")
    parser.add_argument(
        "--precision", choices=LIMITS, default="float32", help="of convolutions and maps, of all contestants"
    )
    asked = parser.parse_args(argv)
    asked.methods = list(dict.fromkeys(asked.methods.split(",")))
    for name in asked.methods:
        if name not in METHODS:
            parser.error(f"--methods: got {name!r}, want of {', '.join(METHODS)}")
    return asked


def main(argv: Sequence[str] | None = None, settings: Mapping[str, Json] | None = None) -> int:
    """0; 1 when a fused step failed its gate; 2 when it cannot begin; 130 after Ctrl-C. `settings`: by method, other
    ones, for tests."""
    return options.run(lambda: measure_and_report(parse(argv), settings or {}))


def measure_and_report(asked: argparse.Namespace, settings: Mapping[str, Json]) -> int:
    device, folder = options.place(asked)
    run, rows, interrupted = Run("benchmarks.zoo", device), [], False
    progress = Progress(sum(len(names(method)) for method in asked.methods) * (asked.rounds + COMMANDS))
    for method in asked.methods:
        arguments = {"method": method, "precision": asked.precision, "settings": settings.get(method, {})}
        chosen = {
            name: Contestant("benchmarks.zoo", arguments | {"name": name}, asked.precision) for name in names(method)
        }
        by_name, interrupted = measure(chosen, PLAIN, asked.rounds, device, progress, f"{method}, ")
        case = CASES.get(method, Case())
        zoo_report.relate(by_name)
        for name in STYLES:
            if name in by_name:
                by_name[name]["about"] = STOCK[method][name].about
        rows.append({"method": method, "turn": case.turn, "changes": case.changes, "providers": by_name})
        if interrupted:
            break
    progress.close()
    # no load of others: the contestants are other processes themselves
    forms = {asked.precision: format_name(kernels.preferred_memory_format(device, getattr(torch, asked.precision)))}
    result = run.result(rows, interrupted, other_load=None, precision=asked.precision, memory_formats=forms)
    paths = zoo_report.write(result, folder)
    print(zoo_report.text(rows))
    print("\n".join(map(str, paths)))
    if interrupted:
        return _commands.INTERRUPTED
    return int(any(row["providers"][FUSED]["status"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
