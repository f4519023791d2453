"""Operations on lists of tensors: on a GPU a few launches in all, not one for each tensor.

torch documents these functions and its optimisers are made of them, but their names are those of private ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_torch: Any = torch


@torch.no_grad()
def copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Every target := its source, in the target's dtype."""
    targets = list(targets)
    if targets:
        _torch._foreach_copy_(targets, list(sources))


@torch.no_grad()
def add(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Every target += its source, in the target's dtype."""
    targets = list(targets)
    if targets:
        _torch._foreach_add_(targets, list(sources))


@torch.no_grad()
def lerp(targets: Iterable[Tensor], ends: Iterable[Tensor], weight: float) -> None:
    """Every target += weight * (its end - target)."""
    targets = list(targets)
    if targets:
        _torch._foreach_lerp_(targets, list(ends), weight)
