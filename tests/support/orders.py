"""Derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def derivatives(function: Callable[..., Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The values, their first derivatives, and those of the squares of these, twice over."""
    y = function(*given)
    found = [y]
    for _ in range(3):
        gradients = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        found += gradients
        y = torch.cat([g.flatten() for g in gradients])
    return found
