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

from kernels.fusing.classes import derive, root_class, underive, untouched
from kernels.fusing.finish import Tail, TakesTail, finish, finish_head
from kernels.fusing.heads import is_head
from kernels.fusing.report import FuseReport, place
from kernels.norm.module import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from kernels.resample import ReflectionPad2d


class Run(NamedTuple):
    """A norm and the modules behind it that its call includes."""

    count: int  # how many modules behind the norm
    activation: str
    negative_slope: float
    padding: int


class FusedSequential(TakesTail):
    """The forward of torch.nn.Sequential."""

    def forward(self, input):  # noqa: A002 (torch's name)
        return self.run_with((input,), None)

    def run_with(self, args: tuple[Any, ...], tail: Tail | None) -> Any:
        (x,) = args
        layers: list[Any] = list(self._modules.values())
        at = 0
        while at < len(layers):
            layer = layers[at]
            run = None
            if is_head(layer) and isinstance(x, torch.Tensor) and not _has_any_global_hook():
                run = run_at(layers, at, x.dim())
            at += 1 + (run.count if run else 0)
            if tail is not None and at == len(layers):
                if run is None:
                    return finish(layer, (x,), tail)
                return finish_head(layer, (x,), run.activation, run.negative_slope, run.padding, tail)
            x = layer(x) if run is None else layer.run(x, None, run.activation, run.negative_slope, run.padding)
        return x if tail is None else tail.after(x)

    def takes_tail(self) -> bool:
        layers: list[Any] = list(self._modules.values())
        if not layers:
            return False
        if takes_tail(layers[-1]):
            return True
        behind = len(layers) > 1 and is_head(layers[-2]) and joins_as_activation(layers[-1])
        return behind and untouched(layers[-2]) and layers[-2].activation == "none"  # for a residual


def run_at(layers: list[Any], at: int, dims: int) -> Run | None:
    """What runs together with the head at `at` for an input of `dims` dimensions; None if nothing does."""
    norm = layers[at]
    if norm.padding or not untouched(norm):
        return None
    activation, slope, padding = norm.activation, norm.negative_slope, 0
    behind = at + 1
    if activation == "none" and behind < len(layers) and joins_as_activation(layers[behind]):
        activation, slope = activation_of(layers[behind])
        behind += 1
    if behind < len(layers) and takes_padding(norm, dims) and joins_as_padding(layers[behind], norm.impl):
        padding = layers[behind].padding[0]
        behind += 1
    return Run(behind - at - 1, activation, slope, padding) if behind > at + 1 else None


def takes_padding(norm: nn.Module, dims: int) -> bool:
    """Whether, for an input of `dims` dimensions, a ReflectionPad2d behind `norm` pads the planes that it normalises:
    of (N, C, L) it would pad the channels."""
    return isinstance(norm, InstanceNorm2d) or dims == 4 and not isinstance(norm, (InstanceNorm1d, InstanceNorm3d))


def activation_of(module: nn.Module) -> tuple[str, float]:
    """Name and slope of a module that `joins_as_activation`."""
    return ("leaky_relu", module.negative_slope) if isinstance(module, nn.LeakyReLU) else ("relu", 0.2)


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
        if not is_head(norm):
            continue
        run = run_at(layers, at, 4)
        count = run.count if run else 0
        for key, module in zip(keys[at + 1 : at + 1 + count], layers[at + 1 :]):
            what = f"{type(module).__name__} merged into {place(name, keys[at])}"
            merged.append((place(name, key), what))
        if at + 1 + count < len(layers):
            key, module = keys[at + 1 + count], layers[at + 1 + count]
            why = _why_apart(norm, module, count)
            if why:
                left.append((place(name, key), why))
    why = become_fused(sequence) if merged else ""
    if why:
        report.left.append((name, f"activations and paddings not merged: {why}"))
        return
    report.merged += merged
    report.left += left


def become_fused(sequence: nn.Sequential) -> str:
    """Gives it the forward that runs together what may; or says why not."""
    if isinstance(sequence, FusedSequential):
        return ""
    cls = root_class(sequence)
    own = any(getattr(cls, key) is not getattr(nn.Sequential, key) for key in ("forward", "__iter__"))
    return "this Sequential has a forward of its own" if own else derive(sequence, FusedSequential)


def give_back(module: nn.Module) -> None:
    if isinstance(module, FusedSequential):
        underive(module, FusedSequential)


def let_take_tail(module: nn.Module) -> bool:
    """`takes_tail`, after having made Sequentials able to that end with a norm."""
    if isinstance(module, nn.Sequential) and not isinstance(module, FusedSequential) and len(module):
        if let_take_tail(module[-1]) or len(module) > 1 and is_head(module[-2]):
            become_fused(module)
    return takes_tail(module)


def takes_tail(module: nn.Module) -> bool:
    """Whether `finish` may save something there."""
    if not untouched(module):
        return False
    return is_head(module) or isinstance(module, TakesTail) and module.takes_tail()


def _why_apart(norm: Any, module: Any, merged: int) -> str:
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
