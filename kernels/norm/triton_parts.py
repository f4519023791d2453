"""What the device code of the norm family (triton_forward.py, triton_backward.py) is made of.

Formulas and signs are those of csrc/cpu/norm/lines.h; grids: launch_triton.py.

One tile is [BLOCK_C planes, BLOCK_L positions], and position `pos` of plane (n, c) stands at

    contiguous       (n * C + c) * L + pos         tiles take any planes of the batch
    channels last    n * C * L + c + pos * C       tiles take channels of one sample

so one kernel serves both layouts, and small planes (many per tile) as well as pieces of large ones (BLOCK_C = 1).

Instance norm of planes that fit a tile is one launch (`forward_resident`, `backward_resident`). Larger planes and
MUNIT's layer norm go in two sweeps: every chunk of a plane leaves partial results, and the second sweep merges those of
its planes itself, or finds them merged by a small kernel where they are many. Partial results of a plane stand side by
side (planes, chunks), so those of a sample do too. Nothing is added atomically, every sum has one order: results repeat
bit for bit.

Padding is written by output position: each padded pixel looks its source up. The opposite, scattering from the source,
needs up to nine masked stores per element; this needs one store and a load that mostly hits cache. Backward gathers as
well: a source pixel adds up the gradients of the pixels that show it.

Statistics are carried as mean = high + low: d = x - high is exact for x near the mean, low enters the constant term.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.norm import spec

# kinds of statistics and activations, for use inside kernels
_INSTANCE = tl.constexpr(spec.INSTANCE)
_LAYER_STD = tl.constexpr(spec.LAYER_STD)
_RELU = tl.constexpr(spec.ACTIVATIONS.index("relu"))
_LEAKY_RELU = tl.constexpr(spec.ACTIVATIONS.index("leaky_relu"))
_TANH = tl.constexpr(spec.ACTIVATIONS.index("tanh"))

PLAIN = ["planes", "H", "scale_n", "shift_n", "chunks", "tiles", "group"]  # see kernels/_triton.py

# ---- where things are ------------------------------------------------------------------------------------------------


@triton.jit
def locate(pid, pieces, planes, C, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Program `pid` -> (its planes, their sample, their channel, which of them exist, which of the `pieces` of each).
    Neighbouring programs read neighbouring memory."""
    if CHANNELS_LAST:
        blocks = tl.cdiv(C, BLOCK_C)
        piece = (pid // blocks) % pieces
        c = (pid % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        n = (pid // blocks // pieces) + tl.zeros_like(c)
        plane = n * C + c
        exists = c < C
    else:
        piece = pid % pieces
        plane = (pid // pieces) * BLOCK_C + tl.arange(0, BLOCK_C)
        n = plane // C
        c = plane % C
        exists = plane < planes
    if WIDE:
        piece = piece.to(tl.int64)
    return plane, n, c, exists, piece


@triton.jit
def start_of(plane, n, c, C, length, CHANNELS_LAST: tl.constexpr):
    """Offset of position 0 of each plane, 64 bits: a batch may hold more than 2^31 elements."""
    if CHANNELS_LAST:
        return n.to(tl.int64) * length * C + c
    else:
        return plane.to(tl.int64) * length


@triton.jit
def along(pos, C, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Offset of a position from position 0. WIDE: 32 bits do not hold it."""
    if WIDE:
        pos = pos.to(tl.int64)
    if CHANNELS_LAST:
        return pos * C
    else:
        return pos


@triton.jit
def load_tile(from_, pos, valid, C, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, POLICY: tl.constexpr):
    """float32 tile of positions `pos` of the planes that start at the pointers from_; 0 where not valid."""
    at = along(pos, C, CHANNELS_LAST, WIDE)
    return tl.load(from_[:, None] + at[None, :], mask=valid, other=0.0, eviction_policy=POLICY).to(tl.float32)


@triton.jit
def store_tile(to, v, pos, valid, C, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    at = along(pos, C, CHANNELS_LAST, WIDE)
    tl.store(to[:, None] + at[None, :], v.to(to.dtype.element_ty), mask=valid)


@triton.jit
def source_of(o, H, W, PAD: tl.constexpr, ROWS: tl.constexpr):
    """Output position -> (position it shows, its row, its column). ROWS: rows matter although nothing is padded."""
    if PAD > 0:
        PW = W + 2 * PAD
        row = o // PW
        h = tl.abs(row - PAD)
        w = tl.abs(o - row * PW - PAD)
        h = tl.where(h < H, h, 2 * (H - 1) - h)
        w = tl.where(w < W, w, 2 * (W - 1) - w)
        return h * W + w, h, w
    elif ROWS:
        h = o // W
        return o, h, o - h * W
    else:
        return o, o, o


# ---- statistics ------------------------------------------------------------------------------------------------------


@triton.jit
def two_sum(a, b):
    """(s, e): s = a + b rounded, e what the rounding lost (Knuth)."""
    s = a + b
    back = s - a
    return s, (a - (s - back)) + (b - back)


@triton.jit
def tile_moments(v, valid, count):
    """(high, low, sum of squared deviations) of each row of v, which is 0 where not valid."""
    high = tl.sum(v, 1) / count
    d = tl.where(valid, v - high[:, None], 0.0)
    low = tl.sum(d, 1) / count
    d = tl.where(valid, d - low[:, None], 0.0)
    return high, low, tl.sum(d * d, 1)


@triton.jit
def merge_partials(pivot, high, low, m2, count, total):
    """Chan's formula over axis 1 at once: means are merged as differences from `pivot`, one of them."""
    delta = (high - pivot[:, None]) + low
    mean = tl.sum(count * delta, 1) / total
    delta = delta - mean[:, None]
    m2 = tl.sum(m2 + count * (delta * delta), 1)  # absent entries have count 0 and m2 0
    high, low = two_sum(pivot, mean)
    return high, low, m2


@triton.jit
def load_partials(partials_ptr, first, j, per_plane, size, span, L, valid):
    """(high, low, m2, count) of the partial results first + j. The last of each plane's `per_plane` chunks is short."""
    at = partials_ptr + first + j
    high = tl.load(at, mask=valid, other=0.0)
    low = tl.load(at + size, mask=valid, other=0.0)
    m2 = tl.load(at + 2 * size, mask=valid, other=0.0)
    before = (j % per_plane).to(tl.int64) * span
    count = tl.where(valid, tl.minimum(L - before, span), 0).to(tl.float32)
    return high, low, m2, count


@triton.jit
def close_group(m2, count, eps, KIND: tl.constexpr):
    """(biased variance, 1 / denominator): 0 for 0, a constant group without eps; NaN for a variance out of range."""
    var = m2 / count
    if KIND == _INSTANCE:
        denominator = tl.sqrt_rn(var + eps)
    elif KIND == _LAYER_STD:
        denominator = tl.sqrt_rn(m2 / (count - 1.0)) + eps
    else:
        denominator = tl.sqrt_rn(m2 / (count - 1.0) + eps)
    zero = denominator == 0
    rstd = tl.div_rn(tl.full(denominator.shape, 1.0, tl.float32), tl.where(zero, 1.0, denominator))
    return var, tl.where(zero, 0.0, tl.where(denominator == float("inf"), float("nan"), rstd))


@triton.jit
def store_stats(stats, plane, planes, high, low, var, rstd, valid):
    tl.store(stats + plane, high, mask=valid)
    tl.store(stats + planes + plane, low, mask=valid)
    tl.store(stats + 2 * planes + plane, var, mask=valid)
    tl.store(stats + 3 * planes + plane, rstd, mask=valid)


@triton.jit
def load_stats(stats, plane, planes, valid):
    high = tl.load(stats + plane, mask=valid, other=0.0)
    low = tl.load(stats + planes + plane, mask=valid, other=0.0)
    var = tl.load(stats + 2 * planes + plane, mask=valid, other=0.0)
    rstd = tl.load(stats + 3 * planes + plane, mask=valid, other=0.0)
    return high, low, var, rstd


# ---- coefficients and activation -------------------------------------------------------------------------------------


@triton.jit
def scale_of(scale, n, c, scale_n, offset, exists):
    if scale is not None:
        return tl.load(scale + n * scale_n + c, mask=exists, other=0.0).to(tl.float32) + offset
    else:
        return tl.full(c.shape, 1.0, tl.float32)


@triton.jit
def coefficients(s, shift, n, c, shift_n, low, rstd, exists):
    """(a, b) of z = d * a + b. Backward calls this too and so sees the very z of the forward pass."""
    a = s * rstd
    b = -low * a
    if shift is not None:
        b += tl.load(shift + n * shift_n + c, mask=exists, other=0.0).to(tl.float32)
    return a, b


@triton.jit
def tanh(z):
    """Odd polynomial where 1 - e^-2|z| would cancel (least squares for the relative error on |z| < 0.625, 8e-8),
    (1 - e) / (1 + e) elsewhere. NaN passes."""
    m = tl.abs(z)
    e = tl.exp(-2.0 * m)
    far = (1.0 - e) / (1.0 + e)
    s = z * z
    q = -0.005691985599696636 * s + 0.020626291632652283
    q = q * s - 0.05373531952500343
    q = q * s + 0.13331381976604462
    q = q * s - 0.3333328068256378
    return tl.where(m < 0.625, z + z * (s * q), tl.where(z < 0, -far, far))


@triton.jit
def activate(z, slope, ACT: tl.constexpr):
    if ACT == _RELU:
        return tl.where(z < 0, 0.0, z)  # written so that NaN survives
    elif ACT == _LEAKY_RELU:
        return tl.where(z < 0, z * slope, z)
    elif ACT == _TANH:
        return tanh(z)
    else:
        return z


@triton.jit
def activation_gradient(g, z, slope, ACT: tl.constexpr):
    if ACT == _RELU:
        return tl.where(z <= 0, 0.0, g)  # as torch: 0 at 0, passes at NaN
    elif ACT == _LEAKY_RELU:
        return tl.where(z > 0, g, g * slope)
    elif ACT == _TANH:
        t = tanh(z)
        return g * (1.0 - t * t)
    else:
        return g


@triton.jit
def dx_coefficients(s, g_sum, gx_sum, low, var, rstd, count, KIND: tl.constexpr):
    """(p, q, r) of dx = g' * p + d * q + r, from the group's sums of scale * g' and scale * g' * x_hat."""
    if KIND == _INSTANCE:
        k = rstd / count
    elif KIND == _LAYER_STD:
        std = tl.sqrt_rn(var * (count / (count - 1.0)))
        # at a constant sample the deviation has no derivative: 0 is taken
        k = tl.where(std > 0, 1.0 / (tl.where(std > 0, std, 1.0) * (count - 1.0)), 0.0)
    else:
        k = rstd / (count - 1.0)
    k = k * gx_sum * rstd
    return rstd * s, -k, k * low - rstd * (g_sum / count)
