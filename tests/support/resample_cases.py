"""The resample operators beside the published forms they stand for, and the planes they are compared on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

import kernels


class Case(NamedTuple):
    name: str
    ours: Callable  # (x, impl) -> y
    published: Callable  # x -> y
    least: int  # rows and columns


def blur_filter(row: list[float], like: torch.Tensor) -> torch.Tensor:
    row = torch.tensor(row, dtype=like.dtype)
    return torch.outer(row, row).expand(like.shape[1], 1, -1, -1)


def downsample(x: torch.Tensor, size: int) -> torch.Tensor:
    """CUT's Downsample: a padded grouped convolution."""
    before, behind = (size - 1) // 2, math.ceil((size - 1) / 2)
    row = [math.comb(size - 1, t) / 2 ** (size - 1) for t in range(size)]
    padded = F.pad(x, (before, behind, before, behind), mode="reflect")
    return F.conv2d(padded, blur_filter(row, x), stride=2, groups=x.shape[1])


def upsample(x: torch.Tensor) -> torch.Tensor:
    """CUT's Upsample: a grouped transposed convolution over replicated borders, cropped."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    weight = blur_filter([0.25, 0.75, 0.75, 0.25], x)
    return F.conv_transpose2d(padded, weight, stride=2, padding=2, groups=x.shape[1])[:, :, 1:-1, 1:-1]


def down(size: int) -> Case:
    return Case(
        f"down{size}",
        lambda x, impl="auto": kernels.blur_downsample(x, filter_size=size, impl=impl),
        lambda x: downsample(x, size),
        size // 2 + 1,
    )


def pad(*sides: int) -> Case:
    return Case(
        f"pad{'-'.join(map(str, sides))}",
        lambda x, impl="auto": kernels.reflection_pad2d(x, sides, impl=impl),
        lambda x: F.pad(x, sides, mode="reflect"),
        max(sides) + 1,
    )


UP = Case("up", lambda x, impl="auto": kernels.blur_upsample(x, impl=impl), upsample, 1)
PADS = [pad(1, 1, 1, 1), pad(3, 3, 3, 3), pad(1, 2, 0, 3), pad(5, 0, 4, 7), pad(0, 1, 0, 0)]
CASES = [*(down(size) for size in range(2, 8)), UP, *PADS]

# (N, C): fewer channels than a register, a part of one more than a register, several
CHANNELS = [(1, 1), (2, 3), (1, 17), (2, 70)]
# the smallest, odd ones, fewer columns than a register, one more than a register, several and a part
PLANES = [(1, 1), (4, 4), (5, 9), (17, 33), (8, 130)]


def planes(case: Case, n: int, c: int, height: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Normal numbers around 0.5, as `dtype` holds them."""
    generator = torch.Generator().manual_seed(seed)
    size = (n, c, max(height, case.least), max(width, case.least))
    return (torch.randn(size, generator=generator, dtype=torch.float64) * 2 + 0.5).to(dtype)
