"""Tensors to addresses and tables for the C++ operators (csrc/cpu/resample). No autograd, no argument checks."""

from __future__ import annotations

import functools

import torch

from kernels._layout import dense
from kernels._native import DTYPE_CODES, load
from kernels.resample.spec import Spec
from kernels.resample.taps import Taps, tables

Tensor = torch.Tensor

# The arguments of the C++ function, in order, by the names of csrc/cpu/resample/bind.cpp; compared when the library
# loads.
_AXIS = ("first", "index", "weight", "outputs", "low", "groups", "phases", "step")  # as _axis returns them
ARGUMENTS = {
    "resample": " ".join(
        ["x y n c channels_last dtype sn sc sh", *(f"{axis}.{name}" for axis in ("rows", "columns") for name in _AXIS)]
    )
}


def _axis(taps: Taps) -> tuple[int, ...]:
    arrays = (array.ctypes.data for array in (taps.first, taps.index, taps.weight))
    return *arrays, taps.outputs, taps.low, taps.groups, taps.phases, taps.step


@functools.lru_cache(maxsize=1024)
def _tables(spec: Spec) -> tuple[tuple[Taps, Taps], tuple[int, ...], tuple[int, int]]:
    """The tables, kept alive for as long as their addresses are, and the size of the output."""
    both = tables(spec)
    return both, (*_axis(both[0]), *_axis(both[1])), spec.output


def apply(x: Tensor, spec: Spec, channels_last: bool) -> Tensor:
    """The operator or its gradient on x (N, C, H, W); the result lies in memory as `channels_last` says."""
    n, c, _, _ = x.shape
    sn, sc, sh, sw = x.stride()
    # rows must be dense, but may lie apart: the inside of a padded map is read where it is
    if not ((sc == 1 and sw == c) if channels_last else sw == 1):
        x = dense(x, channels_last)
        sn, sc, sh, sw = x.stride()
    # the arrays live at least as long as their name here, also when the cache is full
    arrays, addresses, size = _tables(spec)
    # as `new_output` does, whose arithmetic is 2 of the 7 us of a tiny call
    order = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty((n, c, *size), dtype=x.dtype, device=x.device, memory_format=order)
    if n and c:
        code = DTYPE_CODES[x.dtype]
        load().resample(x.data_ptr(), y.data_ptr(), n, c, channels_last, code, sn, sc, sh, *addresses)
    return y
