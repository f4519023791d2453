"""The part of `fuse` that knows torch.nn.GroupNorm with one channel in each group, which is an instance norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kernels.fusing import recognised
from kernels.fusing.classes import derive
from kernels.fusing.heads import Head, follow
from kernels.fusing.probe import why_no_numbers
from kernels.norm.op import instance_norm

Tensor = torch.Tensor


class FusedGroupNorm(Head):
    """Looks at its numbers at every call, as torch's forward does, so all of them may be assigned."""

    num_groups: int
    num_channels: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def run(
        self,
        x: Tensor,
        residual: Tensor | None,
        activation: str,
        negative_slope: float,
        padding: int,
        *more: Any,
    ) -> Tensor:
        if (
            more
            or self.num_groups != self.num_channels
            or not recognised.is_served(x, self.num_channels)
            or not recognised.norm_keeps_dtype(x, self.weight, self.bias)
        ):
            return follow(recognised.stock_forward(self)(x, *more), residual, activation, negative_slope, padding)
        return instance_norm(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            padding=padding,
            impl=self.impl,
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        return self.run(input, None, "none", 0.2, 0)


def looks_like(module: nn.Module) -> bool:
    """torch's class itself: a subclass may compute something else."""
    return (type(module) is nn.GroupNorm or isinstance(module, FusedGroupNorm)) and _one_each(module)


def _one_each(module: Any) -> bool:
    return module.num_groups == module.num_channels


def take(module: Any) -> str:
    """Puts the operator behind the forward of `module`, which looks like one; or says why not."""
    why = why_no_numbers(module) or recognised.why_not(module, FusedGroupNorm) or recognised.why_not_eps(module.eps)
    return why or ("" if isinstance(module, FusedGroupNorm) else derive(module, FusedGroupNorm))


def name_of(module: nn.Module) -> str:
    """What computes it; empty if nothing here does."""
    taken = isinstance(module, FusedGroupNorm) and _one_each(module) and "forward" not in vars(module)
    return "instance_norm (GroupNorm with one channel in each group)" if taken else ""


def give_back(module: nn.Module) -> None:
    recognised.give_back(module, FusedGroupNorm)
