"""Tensors to tiles and grids for the triton kernel (triton_kernels.py). No autograd, no checks of arguments.

Launches go to the current stream of the tensors' device and all memory comes from torch. The first launch of a spec
copies its tables to the device and waits for them; later ones copy nothing: safe inside CUDA graphs once it has run.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from kernels import _triton
from kernels._layout import dense
from kernels._triton import cdiv, on, pow2
from kernels.resample import triton_kernels
from kernels.resample.spec import Spec, new_output
from kernels.resample.taps import Taps, tables

Tensor = torch.Tensor

# A thread makes one pixel of PLANES planes, or, channels last, of the channels in 16 bytes: everything about the pixel
# (divisions, tables, offsets) is worked out once for all of them. Registers of a thread by ptxas for sm_80 / sm_90 /
# sm_100, float32; nothing spilled, no shared memory, and 32 are eight independent loads in flight:
#
#                          channels first        channels last
#   pad      forward       30 / 31 / 31          26 / 26 / 27         1 x 1 taps
#            backward      32 / 40 / 40          32 / 32 / 32         2 x 2, of which most pixels have one
#   down 3   forward       40 / 64 / 60          40 / 48 / 50         3 x 3
#            backward      32 / 40 / 40          32 / 32 / 32         2 x 2
#   up       forward       32 / 40 / 40          32 / 32 / 32         2 x 2
#            backward      40 / 96 / 96          40 / 40 / 56         4 x 4
#   down 7   forward       40 / 64 / 64          54 / 54 / 56         7 x 7, of one plane
#
# With 8 planes, up backward took 245 on sm_90; with two vectors a thread, channels last, 67.
WARPS = 4
PLANES, CHANNELS = 4, 64  # of a program, at most

NARROW = 2**31  # offsets below this are 32 bits


def _axis(taps: Taps, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices and weights, (taps, outputs) each. Outputs with fewer taps than others have weight 0 in their place."""
    counts = np.diff(taps.first)
    tap = np.arange(counts.max())[:, None]
    at = np.minimum(taps.first[:-1] + tap, len(taps.index) - 1)
    index, weight = (np.where(tap < counts, of[at], of.dtype.type(0)) for of in (taps.index, taps.weight))
    return torch.from_numpy(index).to(device), torch.from_numpy(weight).to(device)


@functools.cache
def _tables(spec: Spec, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the rows, then of the columns. Kept for good: captured graphs hold their addresses, and any stream may be
    reading them."""
    rows, columns = tables(spec)
    return *_axis(rows, device), *_axis(columns, device)


def _unit(x: Tensor) -> int:
    """How many channels lie and move together: the 16 bytes of a load, where x is channels last and every pixel starts
    at a multiple of that; else 1."""
    unit = 16 // x.element_size()
    sizes, strides = x.shape, x.stride()
    even = all(strides[d] % unit == 0 for d in (0, 2, 3) if sizes[d] > 1)
    return unit if strides[1] == 1 and sizes[1] % unit == 0 and even else 1


def _tile(c: int, unit: int, taps: int, channels_last: bool) -> tuple[int, int, int]:
    """Pixels, channels and planes of a program."""
    if not channels_last:
        # the time triton compiles grows with the square of the loads: 7 x 7 taps of 4 planes would take 5 seconds
        return 32 * WARPS, 1, min(PLANES, pow2(c)) if taps <= 16 else 1
    block_c = min(CHANNELS, pow2(c))
    return 32 * WARPS * max(unit, 2) // block_c, block_c, 1


def apply(x: Tensor, spec: Spec, channels_last: bool) -> Tensor:
    """The operator or its gradient on x (N, C, H, W), which is read where it is: rows may lie apart or be repeated. The
    result lies in memory as `channels_last` says."""
    y = new_output(x, spec, channels_last)
    if not y.numel():
        return y
    n, c, h, w = x.shape
    if channels_last and x.stride(1) != 1:  # a gradient of the other format: one pass here, or one for each tap
        x = dense(x, channels_last)
    sn, sc, sh, sw = x.stride()
    height, width = spec.output
    unit = _unit(x) if channels_last else 1
    found = _tables(spec, x.device)
    rows, columns = found[0].shape[0], found[2].shape[0]
    block_p, block_c, planes = _tile(c, unit, rows * columns, channels_last)
    # offsets inside a sample, or inside a plane where planes are apart; the tile's overhang included
    reach = max((h - 1) * sh + (w - 1) * sw, (height * width + block_p) * (c if channels_last else 1))
    with on(x):
        _triton.run(
            triton_kernels.resample,
            n * cdiv(c, block_c * planes) * cdiv(height * width, block_p),
            WARPS,
            *(x, y, *found, c // unit, height, width, sn // unit, sc, sh // unit, sw // unit),
            ROWS=rows,
            COLUMNS=columns,
            CHANNELS_LAST=channels_last,
            UNIT=unit,
            WIDE=reach >= NARROW,
            BLOCK_P=block_p,
            BLOCK_C=block_c,
            PLANES=planes,
        )
    return y
