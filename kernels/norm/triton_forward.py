"""Device code of the norm family, forward: statistics and y. Layout, tiles and conventions: triton_parts.py."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.norm.triton_parts import (
    PLAIN,
    activate,
    close_group,
    coefficients,
    load_partials,
    load_stats,
    load_tile,
    locate,
    merge_partials,
    scale_of,
    source_of,
    start_of,
    store_stats,
    store_tile,
    tile_moments,
    two_sum,
)


@triton.jit
def _emit(
    v, valid, o, pos, h, w, plane, n, c, high, a, b, slope,
    residual, y, C, L, out_length, rn, rc, rh, rw,
    ACT: tl.constexpr, CHANNELS_LAST: tl.constexpr, STRIDED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Output positions o from the values v they show (position pos, row h, column w)."""
    out = activate((v - high[:, None]) * a[:, None] + b[:, None], slope, ACT)
    if residual is not None:
        if STRIDED:
            from_ = residual + n.to(tl.int64) * rn + c.to(tl.int64) * rc
            if WIDE:
                h = h.to(tl.int64)
                w = w.to(tl.int64)
            out += tl.load(from_[:, None] + (h * rh + w * rw)[None, :], mask=valid, other=0.0).to(tl.float32)
        else:
            from_ = residual + start_of(plane, n, c, C, L, CHANNELS_LAST)
            out += load_tile(from_, pos, valid, C, CHANNELS_LAST, WIDE, "")
    store_tile(y + start_of(plane, n, c, C, out_length, CHANNELS_LAST), out, o, valid, C, CHANNELS_LAST, WIDE)


@triton.jit(do_not_specialize=PLAIN)
def forward_resident(
    x, scale, shift, residual, y, stats,
    planes, C, L, out_length, H, W, scale_n, shift_n, rn, rc, rh, rw, count, eps, offset, slope,
    KIND: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, CHANNELS_LAST: tl.constexpr, STRIDED: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Whole planes in registers: exact two-pass statistics, then y at once. y None: statistics alone."""
    plane, n, c, exists, _ = locate(tl.program_id(0), 1, planes, C, BLOCK_C, CHANNELS_LAST, WIDE)
    from_ = x + start_of(plane, n, c, C, L, CHANNELS_LAST)
    position = tl.arange(0, BLOCK_L)
    valid = exists[:, None] & (position < L)[None, :]
    v = load_tile(from_, position, valid, C, CHANNELS_LAST, WIDE, "")
    high, low, m2 = tile_moments(v, valid, count)
    var, rstd = close_group(m2, count, eps, KIND)
    store_stats(stats, plane, planes, high, low, var, rstd, exists)
    if y is not None:
        s = scale_of(scale, n, c, scale_n, offset, exists)
        a, b = coefficients(s, shift, n, c, shift_n, low, rstd, exists)
        if PAD == 0:
            pos, h, w = source_of(position, H, W, 0, STRIDED)
            _emit(
                v, valid, position, pos, h, w, plane, n, c, high, a, b, slope,
                residual, y, C, L, out_length, rn, rc, rh, rw, ACT, CHANNELS_LAST, STRIDED, WIDE,
            )  # fmt: skip
        else:
            # registers hold the plane by source position; by output position it is read again, from cache
            for o0 in range(0, out_length, BLOCK_O):
                o = o0 + tl.arange(0, BLOCK_O)
                pos, h, w = source_of(o, H, W, PAD, STRIDED)
                inside = exists[:, None] & (o < out_length)[None, :]
                again = load_tile(from_, pos, inside, C, CHANNELS_LAST, WIDE, "")
                _emit(
                    again, inside, o, pos, h, w, plane, n, c, high, a, b, slope,
                    residual, y, C, L, out_length, rn, rc, rh, rw, ACT, CHANNELS_LAST, STRIDED, WIDE,
                )  # fmt: skip


@triton.jit(do_not_specialize=PLAIN)
def chunk_stats(
    x, partials, planes, C, L, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """partials (3, planes, chunks): high, low, sum of squared deviations of each chunk of tiles * BLOCK_L positions."""
    plane, n, c, exists, chunk = locate(tl.program_id(0), chunks, planes, C, BLOCK_C, CHANNELS_LAST, WIDE)
    from_ = x + start_of(plane, n, c, C, L, CHANNELS_LAST)
    total = 0.0
    high = tl.zeros([BLOCK_C], tl.float32)
    low = tl.zeros([BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_C], tl.float32)
    for t in range(0, tiles):
        l0 = (chunk * tiles + t) * BLOCK_L
        position = l0 + tl.arange(0, BLOCK_L)
        valid = exists[:, None] & (position < L)[None, :]
        v = load_tile(from_, position, valid, C, CHANNELS_LAST, WIDE, "")
        count = tl.maximum(tl.minimum(L - l0, BLOCK_L), 0).to(tl.float32)
        tile_high, tile_low, tile_m2 = tile_moments(v, valid, tl.maximum(count, 1.0))
        # Chan, Golub, LeVeque 1979, around this chunk's high so far (the first tile's at first)
        high = tl.where(total > 0, high, tile_high)
        low = tl.where(total > 0, low, tile_low)
        delta = (tile_high - high) + (tile_low - low)
        part = count / (total + count)
        m2 += tile_m2 + delta * delta * (total * part)
        high, low = two_sum(high, low + delta * part)
        total += count
    size = planes * chunks
    to = partials + plane * chunks + chunk
    tl.store(to, high, mask=exists)
    tl.store(to + size, low, mask=exists)
    tl.store(to + 2 * size, m2, mask=exists)


@triton.jit(do_not_specialize=PLAIN)
def combine_stats(
    partials, stats, planes, L, group, chunks, tiles, count, eps,
    KIND: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program merges the partial results of one statistics group, `group` planes, and gives each the result."""
    first = tl.program_id(0) * group * chunks
    size = planes * chunks
    total = tl.zeros([1], tl.float32)
    high = tl.load(partials + first + tl.zeros([1], tl.int32))
    low = tl.zeros([1], tl.float32)
    m2 = tl.zeros([1], tl.float32)
    for j0 in range(0, group * chunks, BLOCK_K):
        j = j0 + tl.arange(0, BLOCK_K)[None, :]
        part_high, part_low, part_m2, part_count = load_partials(
            partials, first, j, chunks, size, tiles * BLOCK_L, L, j < group * chunks
        )
        n = tl.sum(part_count, 1)
        part_high, part_low, part_m2 = merge_partials(high, part_high, part_low, part_m2, part_count, n)
        delta = (part_high - high) + (part_low - low)
        part = n / (total + n)
        m2 += part_m2 + delta * delta * (total * part)
        high, low = two_sum(high, low + delta * part)
        total += n
    var, rstd = close_group(m2, count, eps, KIND)
    one = tl.zeros([BLOCK_K], tl.float32)
    for c0 in range(0, group, BLOCK_K):
        c = c0 + tl.arange(0, BLOCK_K)
        plane = tl.program_id(0) * group + c
        store_stats(stats, plane, planes, high + one, low + one, var + one, rstd + one, c < group)


@triton.jit(do_not_specialize=PLAIN)
def forward_apply(
    x, scale, shift, residual, y, stats, partials,
    planes, C, L, out_length, H, W, scale_n, shift_n, rn, rc, rh, rw, chunks, tiles, count, eps, offset, slope,
    KIND: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, CHANNELS_LAST: tl.constexpr, STRIDED: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y by output position. partials None: `stats` is complete; else merged here, and written by the first piece."""
    # backwards: starts with what chunk_stats read last, which L2 still holds
    pid = tl.num_programs(0) - 1 - tl.program_id(0)
    pieces = tl.cdiv(out_length, BLOCK_L)
    plane, n, c, exists, piece = locate(pid, pieces, planes, C, BLOCK_C, CHANNELS_LAST, WIDE)
    if partials is not None:
        j = tl.arange(0, BLOCK_K)[None, :]
        first = plane * chunks
        known = exists[:, None] & (j < chunks)
        part_high, part_low, part_m2, part_count = load_partials(
            partials, first[:, None], j, chunks, planes * chunks, tiles * BLOCK_L, L, known
        )
        pivot = tl.load(partials + first, mask=exists, other=0.0)
        high, low, m2 = merge_partials(pivot, part_high, part_low, part_m2, part_count, count)
        var, rstd = close_group(m2, count, eps, KIND)
        if piece == 0:
            store_stats(stats, plane, planes, high, low, var, rstd, exists)
    else:
        high, low, var, rstd = load_stats(stats, plane, planes, exists)
    s = scale_of(scale, n, c, scale_n, offset, exists)
    a, b = coefficients(s, shift, n, c, shift_n, low, rstd, exists)
    o = piece * BLOCK_L + tl.arange(0, BLOCK_L)
    pos, h, w = source_of(o, H, W, PAD, STRIDED)
    valid = exists[:, None] & (o < out_length)[None, :]
    from_ = x + start_of(plane, n, c, C, L, CHANNELS_LAST)
    v = load_tile(from_, pos, valid, C, CHANNELS_LAST, WIDE, "evict_first")
    _emit(
        v, valid, o, pos, h, w, plane, n, c, high, a, b, slope,
        residual, y, C, L, out_length, rn, rc, rh, rw, ACT, CHANNELS_LAST, STRIDED, WIDE,
    )  # fmt: skip
