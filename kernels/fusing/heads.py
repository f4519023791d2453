"""Heads: modules that normalise, and can put what follows them (activation, residual, padding) in the same call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kernels.fusing.classes import Derived
from kernels.norm.module import INSTANCE_NORMS

Tensor = torch.Tensor


class Head(Derived):
    """A module of somebody else's class that computes a norm of this library.

    Its forward is `run` with nothing behind it. Where it is no longer what it was when `fuse` tried it, its own forward
    runs, and what follows is done by `follow`.
    """

    activation = "none"  # what it applies itself, as an InstanceNorm2d of this library may
    negative_slope = 0.2
    padding = 0
    impl = "auto"

    def run(
        self,
        x: Tensor,
        residual: Tensor | None,
        activation: str,
        negative_slope: float,
        padding: int,
        *more: Any,
    ) -> Tensor:
        """The forward of `(x, *more)`, then activation, residual and reflection padding as in `kernels.instance_norm`.
        `residual` has shape, dtype and device of the result before padding."""
        raise NotImplementedError

    def forward(self, x: Any, *more: Any) -> Any:
        return self.run(x, None, "none", 0.2, 0, *more)


def is_head(module: nn.Module) -> bool:
    return type(module) in INSTANCE_NORMS or isinstance(module, Head)


def follow(y: Tensor, residual: Tensor | None, activation: str, negative_slope: float, padding: int) -> Tensor:
    """What `Head.run` puts after the norm, by torch's operators."""
    if activation == "relu":
        y = F.relu(y)
    elif activation == "leaky_relu":
        y = F.leaky_relu(y, negative_slope)
    elif activation == "tanh":
        y = torch.tanh(y)
    if residual is not None:
        y = y + residual
    return F.pad(y, (padding,) * 4, "reflect") if padding else y
