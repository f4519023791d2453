"""How a module takes along what its owner does with its result: an activation, then the sum with a residual."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import _has_any_global_hook

from kernels.fusing.classes import Derived, untouched
from kernels.fusing.heads import follow, is_head

Tensor = torch.Tensor


class Tail(NamedTuple):
    """What comes behind a module's result."""

    activation: str = "none"  # of `kernels.instance_norm`
    negative_slope: float = 0.2
    residual: Tensor | None = None
    add: Callable[[Any, Any], Any] = operator.add  # how the owner adds it: operator.iadd keeps the result's dtype

    def after(self, y: Any) -> Any:
        """By torch's operators."""
        y = follow(y, None, self.activation, self.negative_slope, 0)
        return y if self.residual is None else self.add(y, self.residual)


class TakesTail(Derived):
    """A module whose last layer may take the tail."""

    def run_with(self, args: tuple[Any, ...], tail: Tail | None) -> Any:
        """The forward of `args`, then `tail`."""
        raise NotImplementedError

    def takes_tail(self) -> bool:
        """Whether a tail may be part of a norm's call."""
        raise NotImplementedError


def finish(module: Any, args: tuple[Any, ...], tail: Tail) -> Any:
    """`module(*args)`, then `tail`: in one call of a norm where the module ends with one and nothing watches it."""
    if isinstance(args[0], Tensor) and untouched(module) and not _has_any_global_hook():
        if is_head(module):
            return finish_head(module, args, module.activation, module.negative_slope, module.padding, tail)
        if isinstance(module, TakesTail):
            return module.run_with(args, tail)
    return tail.after(module(*args))


def finish_head(head: Any, args: tuple[Any, ...], activation: str, slope: float, padding: int, tail: Tail) -> Any:
    """An untouched head with this activation and padding behind it, then `tail`."""
    x, *more = args
    if tail.activation != "none":
        if activation != "none" or padding:
            return tail.after(head.run(x, None, activation, slope, padding, *more))
        activation, slope = tail.activation, tail.negative_slope
        tail = tail._replace(activation="none")
    residual = tail.residual
    if residual is None or padding or not _fits(residual, x):
        return tail.after(head.run(x, None, activation, slope, padding, *more))
    return head.run(x, residual, activation, slope, 0, *more)


def _fits(residual: Any, x: Tensor) -> bool:
    """Whether the sum of the operator is that of torch: no broadcasting, no other dtype for the result."""
    return (
        isinstance(residual, Tensor)
        and residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
    )
