"""Tensors to addresses and plans for the CUDA kernels (csrc/cuda/patches). No autograd, no checks of arguments.

A plan holds the launches of all calls on maps of the same shapes, strides and dtypes. Launches go to the current
stream, nothing is copied to the host and all memory comes from torch: safe inside CUDA graphs once each plan has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels import _cuda
from kernels._cuda import DTYPES, Grid, Launch
from kernels.patches.spec import Layout, new_map, new_rows, positions, readable, strides_of

Tensor = torch.Tensor

# csrc/cuda/patches: args.h and tile.cuh
MAX_MAPS, THREADS = 8, 256
SINGLE, ROWS, BOTH = 0, 1, 2

COLUMNS = 64  # threads of a block along channels, at most: 256 channels of float32 in vectors


class Problem(NamedTuple):
    """One map of a call."""

    x: Tensor
    ids: Tensor
    rows: Tensor


class Part(NamedTuple):
    """A launch, and which of the call's maps it serves."""

    launch: Launch
    maps: tuple[int, ...]
    nulls: tuple[int, ...]  # addresses of the maps it has not


_plans: _cuda.Plans[list[Part]] = _cuda.Plans()


def _access(x: Tensor, rows: Tensor) -> int:
    """How channels are accessed: vectors of 16 bytes need so many of them, and addresses that are multiples."""
    unit = 16 // x.element_size()
    if rows.shape[2] % unit or rows.data_ptr() & 15:
        return SINGLE
    strides = strides_of(x)
    together = strides.sc == 1 and not x.data_ptr() & 15
    return BOTH if together and not any(stride % unit for stride in (strides.sn, strides.sh, strides.sw)) else ROWS


def _describe(kernel: str, problems: Sequence[Problem], index: int, unique: bool, add: bool) -> Launch:
    """One launch for maps of one dtype."""
    blocks, dtype = 0, problems[0].x.dtype
    names = ("length", "w", "sn", "sc", "sh", "sw", "first", "channels", "count", "access", "log_columns")
    numbers: dict[str, list[int]] = {name: [] for name in names}
    for x, _, rows in problems:
        n, count, channels = rows.shape
        access, length = _access(x, rows), positions(x)
        vectors = channels if access == SINGLE else channels // (16 // x.element_size())
        log_columns = min((vectors - 1).bit_length(), COLUMNS.bit_length() - 1)
        values = (length, *strides_of(x), blocks, channels, count, access, log_columns)
        for name, value in zip(names, values):
            numbers[name].append(value)
        blocks += n * -(-count // (THREADS >> log_columns)) * -(-vectors // (1 << log_columns))
    # gather moves bits: one kernel serves both formats of two bytes
    moved = torch.bfloat16 if kernel == "gather" and dtype == torch.float16 else dtype
    return _cuda.launch(
        *("patches", kernel, f"patches::{kernel}<{DTYPES[moved]}>", THREADS, index, Grid(blocks, THREADS)),
        {**numbers, "maps": len(problems), "unique": unique, "add": add},
    )


def _plan(kernel: str, problems: Sequence[Problem], index: int, unique: bool, add: bool) -> list[Part]:
    """A launch for each dtype and each MAX_MAPS maps."""
    parts = []
    for dtype in dict.fromkeys(p.x.dtype for p in problems):
        alike = [i for i, p in enumerate(problems) if p.x.dtype == dtype]
        for start in range(0, len(alike), MAX_MAPS):
            group = alike[start : start + MAX_MAPS]
            launch = _describe(kernel, [problems[i] for i in group], index, unique, add)
            parts.append(Part(launch, tuple(group), (0,) * (MAX_MAPS - len(group))))
    return parts


def _launch(kernel: str, problems: Sequence[Problem], unique: bool = True, add: bool = False) -> None:
    if not problems:
        return
    index = problems[0].x.get_device()
    addresses = [(x.data_ptr(), ids.data_ptr(), rows.data_ptr()) for x, ids, rows in problems]
    shapes = [
        (x.shape, x.stride(), x.dtype, rows.shape[1], map_ & 15, row & 15)
        for (x, _, rows), (map_, _, row) in zip(problems, addresses)
    ]
    key = (kernel, index, unique, add, *shapes)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = _plan(kernel, problems, index, unique, add)
    stream = _cuda.stream(index)
    for launch, maps, nulls in plan:
        x, ids, rows = zip(*[addresses[i] for i in maps])
        launch(stream, *x, *nulls, *ids, *nulls, *rows, *nulls)


def forward(maps: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
    """The patches (B, P, C) of every map. NaN where a position is outside its map."""
    found, problems = [], []
    for x, at in zip(maps, ids):
        rows = new_rows(x, at)
        found.append(rows)
        if rows.numel():
            if x.dim() > 4:  # maps of one or two spatial dimensions are read where they are
                x = readable(x)[0]
            problems.append(Problem(x, at.contiguous(), rows))
    _launch("gather", problems)
    return found


def backward(grads: Sequence[Tensor], ids: Sequence[Tensor], layouts: Sequence[Layout], unique: bool) -> list[Tensor]:
    """The dense gradient of every map, from the gradients (B, P, C) of its patches. Positions outside are left out."""
    found, problems = [], []
    for rows, at, layout in zip(grads, ids, layouts):
        total = new_map(layout, rows)
        found.append(total)
        if rows.numel():
            problems.append(Problem(total, at.contiguous(), rows.contiguous()))
    torch._foreach_zero_(found)  # pyright: ignore[reportPrivateImportUsage] (all in one launch; documented)
    _launch("scatter", problems, unique)
    return found


def add(total: Tensor, rows: Tensor, ids: Tensor) -> None:
    """Adds the rows (B, P, C) into total (B, C, *spatial), which is dense."""
    if rows.numel():
        _launch("scatter", [Problem(total, ids.contiguous(), rows.contiguous())], False, True)
