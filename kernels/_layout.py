"""Memory order of tensors of shape (N, C, *spatial)."""

from __future__ import annotations

import torch


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x of shape (N, C, *spatial) lies in memory as (N, *spatial, C), possibly with gaps: the channels of a
    position closer together than its neighbours. False where both orders are the same."""
    if x.is_contiguous() or x.shape[1] <= 1:
        return False
    step = x.stride(1)
    if step == 1:
        return True
    # some of the channels of such a map
    along = [stride for size, stride in zip(x.shape[2:], x.stride()[2:]) if size > 1]
    return 0 < step < min(along, default=0)


def dense(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x itself or a copy of it in the wanted order."""
    if not channels_last:
        return x.contiguous()
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)
