"""Device code of the norm family, backward: the sums of each plane, then dx. Conventions: triton_parts.py."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.norm.triton_parts import (
    PLAIN,
    activation_gradient,
    coefficients,
    dx_coefficients,
    load_stats,
    load_tile,
    locate,
    scale_of,
    start_of,
    store_tile,
)


@triton.jit
def _shown_in_row(from_, row, w, C, W, valid, PAD: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Gradients of padded row `row` at each of the columns that show column w, added up."""
    if WIDE:
        row = row.to(tl.int64)
    start = row * (W + 2 * PAD)
    g = load_tile(from_, start + w + PAD, valid, C, CHANNELS_LAST, WIDE, "")
    left = valid & ((w >= 1) & (w <= PAD))[None, :]
    g += load_tile(from_, start + PAD - w, left, C, CHANNELS_LAST, WIDE, "")
    right = valid & ((w <= W - 2) & (w >= W - 1 - PAD))[None, :]
    g += load_tile(from_, start + PAD + 2 * (W - 1) - w, right, C, CHANNELS_LAST, WIDE, "")
    return g


@triton.jit
def _load_gradient(
    grad, plane, n, c, pos, l0, l1, valid, C, out_length, H, W,
    PAD: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient that reaches positions `pos` (l0 first, l1 last): with padding, that of all that show them."""
    from_ = grad + start_of(plane, n, c, C, out_length, CHANNELS_LAST)
    if PAD == 0:
        return load_tile(from_, pos, valid, C, CHANNELS_LAST, WIDE, "")
    else:
        h = pos // W
        w = pos - h * W
        # Its own row, the one it is mirrored to above, the one below; most tiles of a large image touch no row near the
        # border. A loop, because ptxas starts all nine loads of straight code at once and spills up to 160 bytes.
        rows = tl.where((l0 // W <= PAD) | (l1 // W >= H - 1 - PAD), 3, 1)
        g = tl.zeros(valid.shape, tl.float32)
        for i in range(0, rows):
            row = tl.where(i == 0, h + PAD, tl.where(i == 1, PAD - h, PAD + 2 * (H - 1) - h))
            above = (i == 1) & (h >= 1) & (h <= PAD)
            below = (i == 2) & (h <= H - 2) & (h >= H - 1 - PAD)
            shows = valid & ((i == 0) | above | below)[None, :]
            g += _shown_in_row(from_, row, w, C, W, shows, PAD, CHANNELS_LAST, WIDE)
        return g


@triton.jit
def _store_sums(dscale, dshift, plane, g_sum, gx_sum, valid):
    """Per plane, either of them None where nobody asked."""
    if dscale is not None:
        tl.store(dscale + plane, gx_sum, mask=valid)
    if dshift is not None:
        tl.store(dshift + plane, g_sum, mask=valid)


@triton.jit(do_not_specialize=PLAIN)
def backward_resident(
    grad, x, scale, shift, stats, dx, dresidual, dscale, dshift,
    planes, C, L, out_length, H, W, scale_n, shift_n, count, offset, slope,
    KIND: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """Whole planes of x and grad in registers: both sums, then dx at once."""
    plane, n, c, exists, _ = locate(tl.program_id(0), 1, planes, C, BLOCK_C, CHANNELS_LAST, WIDE)
    first = start_of(plane, n, c, C, L, CHANNELS_LAST)
    position = tl.arange(0, BLOCK_L)
    valid = exists[:, None] & (position < L)[None, :]
    v = load_tile(x + first, position, valid, C, CHANNELS_LAST, WIDE, "")
    g = _load_gradient(grad, plane, n, c, position, 0, L - 1, valid, C, out_length, H, W, PAD, CHANNELS_LAST, WIDE)
    if dresidual is not None:
        store_tile(dresidual + first, g, position, valid, C, CHANNELS_LAST, WIDE)
    high, low, var, rstd = load_stats(stats, plane, planes, exists)
    s = scale_of(scale, n, c, scale_n, offset, exists)
    a, b = coefficients(s, shift, n, c, shift_n, low, rstd, exists)
    d = tl.where(valid, v - high[:, None], 0.0)
    g = tl.where(valid, activation_gradient(g, d * a[:, None] + b[:, None], slope, ACT), 0.0)
    g_sum = tl.sum(g, 1)
    gx_sum = (tl.sum(g * d, 1) - low * g_sum) * rstd
    _store_sums(dscale, dshift, plane, g_sum, gx_sum, exists)
    p, q, r = dx_coefficients(s, s * g_sum, s * gx_sum, low, var, rstd, count, KIND)
    out = g * p[:, None] + (d * q[:, None] + r[:, None])
    store_tile(dx + first, out, position, valid, C, CHANNELS_LAST, WIDE)


@triton.jit(do_not_specialize=PLAIN)
def chunk_sums(
    grad, x, scale, shift, stats, dresidual, partials,
    planes, C, L, out_length, H, W, scale_n, shift_n, chunks, tiles, offset, slope,
    ACT: tl.constexpr, PAD: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """partials (2, planes, chunks): sums of g' and of g' * d of every chunk of tiles * BLOCK_L positions."""
    plane, n, c, exists, chunk = locate(tl.program_id(0), chunks, planes, C, BLOCK_C, CHANNELS_LAST, WIDE)
    first = start_of(plane, n, c, C, L, CHANNELS_LAST)
    high, low, var, rstd = load_stats(stats, plane, planes, exists)
    s = scale_of(scale, n, c, scale_n, offset, exists)
    a, b = coefficients(s, shift, n, c, shift_n, low, rstd, exists)
    g_sum = tl.zeros([BLOCK_C], tl.float32)
    gd_sum = tl.zeros([BLOCK_C], tl.float32)
    for t in range(0, tiles):
        l0 = (chunk * tiles + t) * BLOCK_L
        position = l0 + tl.arange(0, BLOCK_L)
        valid = exists[:, None] & (position < L)[None, :]
        v = load_tile(x + first, position, valid, C, CHANNELS_LAST, WIDE, "")
        g = _load_gradient(
            grad, plane, n, c, position, l0, l0 + BLOCK_L - 1, valid, C, out_length, H, W, PAD, CHANNELS_LAST, WIDE
        )
        if dresidual is not None:
            store_tile(dresidual + first, g, position, valid, C, CHANNELS_LAST, WIDE)
        d = tl.where(valid, v - high[:, None], 0.0)
        g = tl.where(valid, activation_gradient(g, d * a[:, None] + b[:, None], slope, ACT), 0.0)
        g_sum += tl.sum(g, 1)
        gd_sum += tl.sum(g * d, 1)
    to = partials + plane * chunks + chunk
    tl.store(to, g_sum, mask=exists)
    tl.store(to + planes * chunks, gd_sum, mask=exists)


@triton.jit
def _plane_sums(partials, plane, planes, chunks, low, rstd, exists, BLOCK_K: tl.constexpr):
    """(sum of g', sum of g' * x_hat) of each plane from its chunks'."""
    j = tl.arange(0, BLOCK_K)[None, :]
    known = exists[:, None] & (j < chunks)
    at = partials + plane[:, None] * chunks + j
    g_sum = tl.sum(tl.load(at, mask=known, other=0.0), 1)
    gd_sum = tl.sum(tl.load(at + planes * chunks, mask=known, other=0.0), 1)
    return g_sum, (gd_sum - low * g_sum) * rstd


@triton.jit(do_not_specialize=PLAIN)
def combine_sums(
    partials, scale, stats, sums, dscale, dshift, planes, C, group, scale_n, chunks, offset,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program adds up one statistics group of `group` planes into sums (2, groups), those of scale * g' and
    scale * g' * x_hat; each plane's own go to dscale and dshift."""
    g_total = tl.zeros([BLOCK_P], tl.float32)
    gx_total = tl.zeros([BLOCK_P], tl.float32)
    for p0 in range(0, group, BLOCK_P):
        member = p0 + tl.arange(0, BLOCK_P)
        exists = member < group
        plane = tl.program_id(0) * group + member
        high, low, var, rstd = load_stats(stats, plane, planes, exists)
        g_sum, gx_sum = _plane_sums(partials, plane, planes, chunks, low, rstd, exists, BLOCK_K)
        _store_sums(dscale, dshift, plane, g_sum, gx_sum, exists)
        s = scale_of(scale, plane // C, plane % C, scale_n, offset, exists)
        g_total += tl.where(exists, s * g_sum, 0.0)
        gx_total += tl.where(exists, s * gx_sum, 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(g_total, 0))
    tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(gx_total, 0))


@triton.jit(do_not_specialize=PLAIN)
def backward_apply(
    grad, x, scale, shift, stats, dx, dscale, dshift, partials, sums,
    planes, C, L, out_length, H, W, scale_n, shift_n, group, chunks, count, offset, slope,
    KIND: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx from the chunks' sums, merged here, or where partials is None from the groups' `sums`."""
    pid = tl.num_programs(0) - 1 - tl.program_id(0)  # backwards, as in forward_apply
    plane, n, c, exists, piece = locate(pid, tl.cdiv(L, BLOCK_L), planes, C, BLOCK_C, CHANNELS_LAST, WIDE)
    high, low, var, rstd = load_stats(stats, plane, planes, exists)
    s = scale_of(scale, n, c, scale_n, offset, exists)
    a, b = coefficients(s, shift, n, c, shift_n, low, rstd, exists)
    if partials is not None:
        g_sum, gx_sum = _plane_sums(partials, plane, planes, chunks, low, rstd, exists, BLOCK_K)
        if piece == 0:
            _store_sums(dscale, dshift, plane, g_sum, gx_sum, exists)
        p, q, r = dx_coefficients(s, s * g_sum, s * gx_sum, low, var, rstd, count, KIND)
    else:
        at = plane // group
        g_sum = tl.load(sums + at, mask=exists, other=0.0)
        gx_sum = tl.load(sums + planes // group + at, mask=exists, other=0.0)
        p, q, r = dx_coefficients(s, g_sum, gx_sum, low, var, rstd, count, KIND)
    l0 = piece * BLOCK_L
    position = l0 + tl.arange(0, BLOCK_L)
    valid = exists[:, None] & (position < L)[None, :]
    first = start_of(plane, n, c, C, L, CHANNELS_LAST)
    v = load_tile(x + first, position, valid, C, CHANNELS_LAST, WIDE, "evict_first")
    g = _load_gradient(
        grad, plane, n, c, position, l0, l0 + BLOCK_L - 1, valid, C, out_length, H, W, PAD, CHANNELS_LAST, WIDE
    )
    d = v - high[:, None]
    g = activation_gradient(g, d * a[:, None] + b[:, None], slope, ACT)
    out = g * p[:, None] + (d * q[:, None] + r[:, None])
    store_tile(dx + first, out, position, valid, C, CHANNELS_LAST, WIDE)


@triton.jit(do_not_specialize=PLAIN)
def moments_backward(
    grad_mean, grad_std, x, stats, dx, planes, C, L, count,
    CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """dx of a plane's own mean and sqrt(unbiased variance + eps): linear in d."""
    plane, n, c, exists, piece = locate(tl.program_id(0), tl.cdiv(L, BLOCK_L), planes, C, BLOCK_C, CHANNELS_LAST, WIDE)
    high, low, var, rstd = load_stats(stats, plane, planes, exists)
    q = tl.load(grad_std + plane, mask=exists, other=0.0) * rstd / (count - 1.0)
    r = tl.load(grad_mean + plane, mask=exists, other=0.0) / count - q * low
    position = piece * BLOCK_L + tl.arange(0, BLOCK_L)
    valid = exists[:, None] & (position < L)[None, :]
    first = start_of(plane, n, c, C, L, CHANNELS_LAST)
    v = load_tile(x + first, position, valid, C, CHANNELS_LAST, WIDE, "")
    out = (v - high[:, None]) * q[:, None] + r[:, None]
    store_tile(dx + first, out, position, valid, C, CHANNELS_LAST, WIDE)
