"""What the files of this room share: where the positions of a map stand in memory, and new memory for its
gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from kernels._layout import dense, is_channels_last


class Layout(NamedTuple):
    """A map's size and memory order: all that backward needs to know of it, so that the map itself need not be kept."""

    size: tuple[int, ...]
    channels_last: bool


class Strides(NamedTuple):
    """Position p of channel c in sample n stands at n * sn + c * sc + p // w * sh + p % w * sw, in elements."""

    w: int
    sn: int
    sc: int
    sh: int
    sw: int


def layout_of(x: torch.Tensor) -> Layout:
    return Layout(tuple(x.shape), is_channels_last(x))


def _strides(x: torch.Tensor) -> Strides | None:
    """None where no two strides lead over all positions, as they do over any map of one or two spatial dimensions and
    over every dense one."""
    stride = x.stride()
    if x.dim() == 4:
        return Strides(x.shape[3], *stride)
    dims: list[tuple[int, int]] = []  # (size, stride) of the spatial dimensions, those merged that lie on one line
    for size, step in zip(x.shape[2:], stride[2:]):
        if dims and dims[-1][1] == size * step:
            dims[-1] = (dims[-1][0] * size, step)
        elif size != 1 or not dims:
            dims.append((size, step))
    if len(dims) > 2:
        return None
    (_, sh), (w, sw) = dims if len(dims) == 2 else ((1, 0), *dims)
    return Strides(w, stride[0], stride[1], sh, sw)


def strides_of(x: torch.Tensor) -> Strides:
    """Of a map of at most two spatial dimensions or a dense one."""
    strides = _strides(x)
    assert strides is not None
    return strides


def readable(x: torch.Tensor) -> tuple[torch.Tensor, Strides]:
    """x and its strides; a dense copy where x has none."""
    strides = _strides(x)
    if strides is None:
        x = dense(x, is_channels_last(x))
        strides = strides_of(x)
    return x, strides


def is_dense(x: torch.Tensor) -> bool:
    """Whether x fills its memory without gaps or overlaps, contiguous or channels last."""
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


def dense_copy(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x in memory of its own, whether or not it was dense."""
    copy = new_map(Layout(tuple(x.shape), channels_last), x)
    return copy.copy_(x)


def new_map(layout: Layout, like: torch.Tensor) -> torch.Tensor:
    """Allocates a gradient: dtype and device of `like`, size and memory order of the map."""
    size = layout.size
    if not layout.channels_last:
        return torch.empty(size, dtype=like.dtype, device=like.device)
    size = (size[0], *size[2:], size[1])
    return torch.empty(size, dtype=like.dtype, device=like.device).movedim(-1, 1)


def new_rows(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Allocates the patches of x: (B, P, C)."""
    return torch.empty((x.shape[0], ids.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)


def positions(x: torch.Tensor) -> int:
    return math.prod(x.shape[2:])
