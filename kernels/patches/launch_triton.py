"""Tensors to tiles and grids for the triton kernels (triton_kernels.py). No autograd, no checks of arguments.

Launches go to the current stream of the tensors' device, nothing is copied to the host and all memory comes from torch:
safe inside CUDA graphs once each kernel has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels import _triton
from kernels._triton import cdiv, encode, on
from kernels.patches import triton_kernels
from kernels.patches.spec import Layout, Strides, new_map, new_rows, positions, readable, strides_of

Tensor = torch.Tensor

# A tile of 1024 elements at 4 warps: eight independent loads a thread, which is what hides the latency of a read that
# no neighbour shares, and 64 programs for 256 patches of 256 channels, so that five layers fill a device.
BLOCK_P, BLOCK_C, BLOCK_Q, WARPS = 16, 64, 64, 4
MAX_MAPS = 8  # of one launch


class _Problem(NamedTuple):
    """One map of a launch."""

    x: Tensor
    ids: Tensor
    rows: Tensor
    strides: Strides


def _launch(kernel, problems: Sequence[_Problem], **constants) -> None:
    """One launch for each dtype and each MAX_MAPS maps: a program selects between pointers, so they share a type."""
    for dtype in dict.fromkeys(p.x.dtype for p in problems):
        alike = [p for p in problems if p.x.dtype == dtype]
        for start in range(0, len(alike), MAX_MAPS):
            group = alike[start : start + MAX_MAPS]
            programs, sizes = 0, []
            for x, _, rows, strides in group:
                n, p, c = rows.shape
                length = positions(x)
                numbers = (programs, c, p, length, *strides)
                sizes.append(tuple(encode(number) for number in numbers))
                programs += n * cdiv(p, BLOCK_P) * cdiv(c, BLOCK_C)
            x, ids, rows, _ = zip(*group)
            with on(x[0]):
                _triton.run(
                    *(kernel, programs, WARPS, x, ids, rows, tuple(sizes)),
                    **constants,
                    BLOCK_P=BLOCK_P,
                    BLOCK_C=BLOCK_C,
                )


def forward(maps: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
    """The patches (B, P, C) of every map. NaN where a position is outside its map."""
    found, problems = [], []
    for x, at in zip(maps, ids):
        rows = new_rows(x, at)
        found.append(rows)
        if rows.numel():
            x, strides = readable(x)
            problems.append(_Problem(x, at.contiguous(), rows, strides))
    _launch(triton_kernels.gather, problems)
    return found


def backward(grads: Sequence[Tensor], ids: Sequence[Tensor], layouts: Sequence[Layout], unique: bool) -> list[Tensor]:
    """The dense gradient of every map, from the gradients (B, P, C) of its patches. Positions outside are left out."""
    found, problems = [], []
    for rows, at, layout in zip(grads, ids, layouts):
        total = new_map(layout, rows).zero_()
        found.append(total)
        if rows.numel():
            problems.append(_Problem(total, at.contiguous(), rows.contiguous(), strides_of(total)))
    _launch(triton_kernels.scatter, problems, UNIQUE=unique, ADD=False, BLOCK_Q=BLOCK_Q)
    return found


def add(total: Tensor, rows: Tensor, ids: Tensor) -> None:
    """Adds the rows (B, P, C) into total (B, C, *spatial), which is dense."""
    if rows.numel():
        problem = _Problem(total, ids.contiguous(), rows.contiguous(), strides_of(total))
        _launch(triton_kernels.scatter, [problem], UNIQUE=False, ADD=True, BLOCK_Q=BLOCK_Q)
