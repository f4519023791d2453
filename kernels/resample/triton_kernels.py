"""Device code of the resample room: one gather for every operator, its gradient and both memory formats.

The taps of an output come from tables of the spec, a row of numbers for each tap, so that neighbouring pixels read
neighbouring numbers. Outputs with fewer taps than others have weight 0 in their place, which reads nothing (0 * inf
would be NaN).

A program makes BLOCK_P pixels of BLOCK_C channels of one sample. Channels first, BLOCK_C is 1 and it makes those pixels
of PLANES planes one after the other, not as a dimension of its tiles: of two dimensions that say nothing about where
their elements stand, triton's releases differ in which one neighbouring threads go along.
"""

from __future__ import annotations

import triton
import triton.language as tl

PLAIN = ["C", "height", "width", "sn", "sc", "sh", "sw"]  # see kernels/_triton.py


@triton.jit(do_not_specialize=PLAIN)
def resample(
    x, y, row_index, row_weight, column_index, column_weight, C, height, width, sn, sc, sh, sw,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """y (N, C, height, width), dense; x stands at the strides sn, sc, sh, sw, channels last with sc = 1. ROWS, COLUMNS:
    taps of an output on each axis. UNIT: C, sn, sh and sw are given in units of so many elements, which tells the
    compiler that it may move as many at once. WIDE: 32 bits do not hold the offsets inside a sample."""
    pid = tl.program_id(0)
    if WIDE:
        height = height.to(tl.int64)  # so that what is computed from it has 64 bits too
    C *= UNIT
    pixels = height * width
    blocks_c, blocks_p = tl.cdiv(C, BLOCK_C * PLANES), tl.cdiv(pixels, BLOCK_P)
    n = (pid // blocks_c // blocks_p).to(tl.int64)
    if CHANNELS_LAST:  # neighbouring programs write neighbouring memory
        block_c, block_p = pid % blocks_c, pid // blocks_c % blocks_p
    else:
        block_c, block_p = pid // blocks_p % blocks_c, pid % blocks_p
    c = block_c * (BLOCK_C * PLANES) + tl.arange(0, BLOCK_C)[None, :]
    p = block_p * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = p // width, p % width
    sc, plane = sc.to(tl.int64), pixels.to(tl.int64)
    x += n * sn * UNIT
    if CHANNELS_LAST:
        x += c
    else:
        x += c * sc
    totals = ()
    for r in tl.static_range(ROWS):
        wr = tl.load(row_weight + r * height + row, mask=p < pixels, other=0.0)
        i = tl.load(row_index + r * height + row, mask=p < pixels, other=0).to(p.dtype) * sh
        for t in tl.static_range(COLUMNS):
            w = (wr * tl.load(column_weight + t * width + column, mask=p < pixels, other=0.0))[:, None]
            j = tl.load(column_index + t * width + column, mask=p < pixels, other=0).to(p.dtype) * sw
            at = x + ((i + j) * UNIT)[:, None]
            sums = ()
            for k in tl.static_range(PLANES):
                value = tl.load(at + k * sc, mask=(w != 0) & (c + k < C), other=0.0)
                value = w * value.to(tl.float32)
                if r == 0 and t == 0:
                    sums += (value,)
                else:
                    sums += (totals[k] + value,)
            totals = sums
    y += n * plane * C
    p = p[:, None]
    if CHANNELS_LAST:
        y += p * C + c
    else:
        y += c * plane + p
    for k in tl.static_range(PLANES):
        tl.store(y + k * plane, totals[k].to(y.dtype.element_ty), mask=(p < pixels) & (c + k < C))
