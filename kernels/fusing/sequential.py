"""What `fuse` makes of a Sequential: one call for a norm with the activation and the padding behind it.

Nothing is taken out of the Sequential and no child computes anything but what it did. Each time it runs as a whole, it
looks at its children and runs together what may run together; indexing, slices, loops, hooks, second users and later
changes of the children therefore get the separate modules, which are right by themselves.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from kernels.fusing.classes import Derived, derive, untouched
from kernels.fusing.report import FuseReport, place
from kernels.norm.module import InstanceNorm2d
from kernels.resample import ReflectionPad2d


class Run(NamedTuple):
    """A norm and the modules behind it that its call includes."""

    count: int  # how many modules behind the norm
    activation: str
    negative_slope: float
    padding: int


class FusedSequential(Derived):
    """The forward of torch.nn.Sequential."""

    def forward(self, input):  # noqa: A002 (torch's name)
        layers: list[Any] = list(self._modules.values())
        at = 0
        while at < len(layers):
            layer = layers[at]
            run = None
            if type(layer) is InstanceNorm2d and isinstance(input, torch.Tensor) and not _has_any_global_hook():
                run = run_at(layers, at)
            if run is None:
                input = layer(input)
                at += 1
            else:
                input = layer.run(input, None, run.activation, run.negative_slope, run.padding)
                at += 1 + run.count
        return input


def run_at(layers: list[Any], at: int) -> Run | None:
    """What runs together with the InstanceNorm2d at `at`; None if nothing does."""
    norm = layers[at]
    if norm.padding or not untouched(norm):
        return None
    activation, slope, padding = norm.activation, norm.negative_slope, 0
    behind = at + 1
    if activation == "none" and behind < len(layers) and joins_as_activation(layers[behind]):
        if type(layers[behind]) is nn.ReLU:
            activation = "relu"
        else:
            activation, slope = "leaky_relu", layers[behind].negative_slope
        behind += 1
    if behind < len(layers) and joins_as_padding(layers[behind], norm.impl):
        padding = layers[behind].padding[0]
        behind += 1
    return Run(behind - at - 1, activation, slope, padding) if behind > at + 1 else None


def joins_as_activation(module: nn.Module) -> bool:
    if type(module) is nn.LeakyReLU:
        slope = module.negative_slope
        if type(slope) not in (float, int) or not -math.inf < slope < math.inf:
            return False
    elif type(module) is not nn.ReLU:
        return False
    return untouched(module)


def joins_as_padding(module: nn.Module, impl: str) -> bool:
    if type(module) is not ReflectionPad2d or not untouched(module) or module.impl not in ("auto", impl):
        return False
    sides = module.padding
    return type(sides) is tuple and type(sides[0]) is int and sides[0] > 0 and sides == (sides[0],) * 4


def merge(name: str, sequence: nn.Sequential, report: FuseReport) -> None:
    """Lets `sequence` run together what may, and reports what will and what might have."""
    keys, layers = list(sequence._modules), list(sequence._modules.values())
    merged, left = [], []
    for at, norm in enumerate(layers):
        if type(norm) is not InstanceNorm2d:
            continue
        run = run_at(layers, at)
        count = run.count if run else 0
        for key, module in zip(keys[at + 1 : at + 1 + count], layers[at + 1 :]):
            what = f"{type(module).__name__} merged into {place(name, keys[at])}"
            merged.append((place(name, key), what))
        if at + 1 + count < len(layers):
            key, module = keys[at + 1 + count], layers[at + 1 + count]
            why = _why_apart(norm, module, count)
            if why:
                left.append((place(name, key), why))
    if not merged or isinstance(sequence, FusedSequential):
        report.merged += merged
        report.left += left
        return
    own = any(getattr(type(sequence), key) is not getattr(nn.Sequential, key) for key in ("forward", "__iter__"))
    why = "this Sequential has a forward of its own" if own else derive(sequence, FusedSequential)
    if why:
        report.left.append((name, f"activations and paddings not merged: {why}"))
        return
    report.merged += merged
    report.left += left


def _why_apart(norm: InstanceNorm2d, module: nn.Module, merged: int) -> str:
    """Of a module behind a norm and the `merged` ones: why it is not merged, if one could expect it; else empty."""
    kinds = (nn.ReLU, nn.LeakyReLU, ReflectionPad2d) if not merged else (ReflectionPad2d,)
    if type(module) not in kinds or norm.padding:
        return ""
    kind = type(module).__name__
    if "forward" in vars(norm) or "forward" in vars(module):
        return f"{kind}: its forward or that of the norm before it was replaced on the object"
    if not untouched(norm) or not untouched(module):
        return f"{kind}: a hook watches it or the norm before it"
    if type(module) is nn.LeakyReLU and norm.activation == "none":
        return f"{kind}: negative_slope={module.negative_slope!r}, want a finite float"
    return ""
