"""Memory order of tensors of shape (N, C, *spatial)."""

from __future__ import annotations

import torch


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x of shape (N, C, *spatial) lies in memory as (N, *spatial, C), possibly with gaps. False where both
    orders are the same."""
    if x.is_contiguous():
        return False
    return x.stride(1) == 1 and x.shape[1] > 1


def dense(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x itself or a copy of it in the wanted order."""
    if not channels_last:
        return x.contiguous()
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
