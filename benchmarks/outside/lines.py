"""The contestants: a trainer as it was published, and with the lines that a user adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import kernels
from benchmarks.outside.driven import Driven
from benchmarks.outside.trainers import Trainer

STOCK, KEPT, LAST, FUSE, ACCELERATE = "stock", "stock, freed memory kept", "stock, channels last", "fuse", "accelerate"
NCE, PRECISION = "accelerate, PatchNCE in place", 'accelerate(precision="bfloat16")'
FLOAT32, BFLOAT16 = "float32", "bfloat16"
PUBLISHED = "stock, float32"  # in the table of bfloat16


class Line(NamedTuple):
    about: str
    apply: Callable[[Driven], object]


def each(change: Callable[[torch.nn.Module], object]) -> Callable[[Driven], None]:
    def apply(driven: Driven) -> None:
        for net in driven.networks.values():
            change(net)

    return apply


def channels_last(net: torch.nn.Module) -> None:
    volumes = any(p.dim() == 5 for p in net.parameters())
    any_type: Any = net  # of 3-D formats torch's annotations know nothing
    any_type.to(memory_format=torch.channels_last_3d if volumes else torch.channels_last)


def nce_in_place(driven: Driven) -> None:
    """accelerate, and what CUT's model makes where its import of PatchNCELoss names ours."""
    each(kernels.accelerate)(driven)
    trainer = driven.trainer
    trainer.criterionNCE = [kernels.PatchNCELoss(trainer.opt).to(driven.device) for _ in trainer.criterionNCE]


LINES = {
    STOCK: Line("as published", lambda driven: None),
    KEPT: Line(
        "as published, with what accelerate does to malloc (MALLOC_MMAP_MAX_=0 in the environment)",
        lambda driven: kernels.keep_freed_memory(),
    ),
    LAST: Line("as published, .to(memory_format=torch.channels_last or channels_last_3d)", each(channels_last)),
    FUSE: Line("kernels.fuse(net) for every network", each(kernels.fuse)),
    ACCELERATE: Line(
        "kernels.accelerate(net) for every network: fuse, channels last where that pays, freed memory kept",
        each(kernels.accelerate),
    ),
    NCE: Line("the same, and `from kernels import PatchNCELoss` in models/cut_model.py", nce_in_place),
    PRECISION: Line(
        'kernels.accelerate(net, precision="bfloat16") for every network that is called, and no other line',
        lambda driven: [kernels.accelerate(part, precision="bfloat16") for part in driven.called],
    ),
}


class Contest(NamedTuple):
    """A contestant: which line, and whether the step is run under autocast."""

    line: str
    precision: str  # whose limits it is held to
    autocast: bool = False


def contestants(trainer: Trainer, precision: str) -> dict[str, Contest]:
    """Of one table, by name; the first is the published form in float32."""
    extra = [LAST] if trainer.package else [KEPT]
    ours = [FUSE, ACCELERATE] + [NCE] * trainer.nce
    if precision == FLOAT32:
        return {name: Contest(name, FLOAT32) for name in [STOCK, *extra, *ours]}
    extra = [LAST] if trainer.package else []
    found = {PUBLISHED: Contest(STOCK, FLOAT32)}
    found |= {name: Contest(name, BFLOAT16, autocast=True) for name in [STOCK, *extra, *ours]}
    return found | {PRECISION: Contest(PRECISION, BFLOAT16)}


def compared(trainer: Trainer) -> list[str]:
    """Lines that are compared with stock in float64."""
    return ([LAST] if trainer.package else []) + [FUSE, ACCELERATE] + [NCE] * trainer.nce
