"""Tensors to addresses and tables for the C++ operators (csrc/cpu/resample). No autograd, no argument checks."""

from __future__ import annotations

import functools

import torch

from kernels._layout import dense
from kernels._native import DTYPE_CODES, load
from kernels.resample.spec import Spec, new_output
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
def _tables(spec: Spec) -> tuple[tuple[Taps, Taps], tuple[int, ...]]:
    """The tables, kept alive for as long as their addresses are."""
    both = tables(spec)
    return both, (*_axis(both[0]), *_axis(both[1]))


def apply(x: Tensor, spec: Spec, channels_last: bool) -> Tensor:
    """The operator or its gradient on x (N, C, H, W); the result lies in memory as `channels_last` says."""
    c = x.shape[1]
    sn, sc, sh, sw = x.stride()
    # rows must be dense, but may lie apart: the inside of a padded map is read where it is
    if not ((sc == 1 and sw == c) if channels_last else sw == 1):
        x = dense(x, channels_last)
        sn, sc, sh, sw = x.stride()
    y = new_output(x, spec, channels_last)
    if y.numel():
        arrays, addresses = _tables(spec)  # the arrays live at least as long as this name, also when the cache is full
        code = DTYPE_CODES[x.dtype]
        load().resample(x.data_ptr(), y.data_ptr(), x.shape[0], c, channels_last, code, sn, sc, sh, *addresses)
    return y
