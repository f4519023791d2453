"""Tensors to addresses and strides for the C++ operators (csrc/cpu/patches). No autograd; of the arguments, C++
checks the positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels._native import DTYPE_CODES, load
from kernels.patches.checks import check_range
from kernels.patches.spec import Layout, Strides, new_map, new_rows, positions, readable, strides_of

Tensor = torch.Tensor

# The arguments of each C++ function, in order, by the names of csrc/cpu/patches/bind.cpp; compared when the library
# loads. Those in brackets are passed for every map.
_MAP = "map rows ids n c p positions w sn sc sh sw dtype unique zero"  # as _arguments returns them
ARGUMENTS = {"patches_gather": f"[ {_MAP} ]", "patches_scatter": f"[ {_MAP} ]"}


def _arguments(x: Tensor, strides: Strides, rows: Tensor, ids: Tensor, unique: bool, fill: int) -> tuple:
    n, p, c = rows.shape
    addresses = x.data_ptr(), rows.data_ptr(), ids.data_ptr()
    return (*addresses, n, c, p, positions(x), *strides, DTYPE_CODES[x.dtype], unique, fill)


def forward(maps: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
    """The patches (B, P, C) of every map, in one parallel region. ValueError: a position is outside its map."""
    arguments, found, held = [], [], []
    for x, at in zip(maps, ids):
        rows = new_rows(x, at)
        found.append(rows)
        if rows.numel():
            x, strides = readable(x)
            at = at.contiguous()
            held += (x, at)
            arguments += _arguments(x, strides, rows, at, True, 0)
        else:
            check_range(f"ids[{len(found) - 1}]", at, x)
    if arguments:
        try:
            load().patches_gather(*arguments)
        except IndexError:
            for layer, (x, at) in enumerate(zip(maps, ids)):
                check_range(f"ids[{layer}]", at, x)
            raise
    return found


def backward(grads: Sequence[Tensor], ids: Sequence[Tensor], layouts: Sequence[Layout], unique: bool) -> list[Tensor]:
    """The dense gradient of every map, from the gradients (B, P, C) of its patches."""
    arguments, found, held = [], [], []
    for rows, at, layout in zip(grads, ids, layouts):
        total = new_map(layout, rows)
        found.append(total)
        if total.numel():
            rows, at = rows.contiguous(), at.contiguous()
            held += (rows, at)
            fill = total.numel() * total.element_size()
            arguments += _arguments(total, strides_of(total), rows, at, unique, fill)
    if arguments:
        load().patches_scatter(*arguments)
    return found


def add(total: Tensor, rows: Tensor, ids: Tensor) -> None:
    """Adds the rows (B, P, C) into total (B, C, *spatial), which is dense."""
    if rows.numel() and positions(total):
        rows, ids = rows.contiguous(), ids.contiguous()
        load().patches_scatter(*_arguments(total, strides_of(total), rows, ids, False, 0))
