"""What the device code of the contrastive losses (triton_forward.py, triton_backward.py) is made of.

One launch serves all layers: arguments that differ from layer to layer come as tuples, and a program finds the layer it
works for from its number (`locate`). Sizes are in `sizes`, see launch_triton._sizes.

A problem is `num_queries` queries that share their keys: one image's S queries, or with negatives shared by all images
all of the B * S rows at once. Rows count through the layer: row = problem * num_queries + i.

Products of tiles are accumulated in float32 over steps of BLOCK_K of the width: whole rows in one product would need
more registers (ieee) or shared memory than there is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels._triton import decode
from kernels.nce import spec

_EPS = tl.constexpr(spec.EPS)
_HALF_MAX = tl.constexpr(65504.0)  # the largest finite float16

PLAIN = ["total"]  # see kernels/_triton.py

# ---- which layer, which rows -----------------------------------------------------------------------------------------


@triton.jit
def pick(values, layer):
    """values[layer]. Selections, not a table in memory: that one would have to be copied to the device."""
    found = values[0]
    for i in tl.static_range(1, len(values)):
        found = tl.where(layer == i, values[i], found)
    return found


@triton.jit
def size(values, layer):
    """values[layer] of sizes that came encoded."""
    return decode(pick(values, layer))


@triton.jit
def locate(pid, sizes):
    """(layer, number of this program among the layer's, queries of a problem, its keys, width, queries of an image,
    first row)."""
    starts = sizes[0]
    layer = 0
    for i in tl.static_range(1, len(starts)):
        layer += (pid >= decode(starts[i])).to(tl.int32)
    num_queries = size(sizes[1], layer)
    num_keys = size(sizes[2], layer)
    width = pick(sizes[3], layer)
    image_queries = size(sizes[4], layer)
    first = size(sizes[5], layer)
    return layer, pid - size(starts, layer), num_queries, num_keys, width, image_queries, first


@triton.jit
def pick_strides(strides, layer):
    """Strides (problem, query, key) of a weight, 64 bits: offsets into it may need them."""
    a = pick(strides[0], layer)
    b = pick(strides[1], layer)
    c = pick(strides[2], layer)
    return a, b, c


@triton.jit
def rows_at(from_, row, width):
    """Pointers to the first element of rows."""
    return from_ + row.to(tl.int64) * width


# ---- tiles -----------------------------------------------------------------------------------------------------------


@triton.jit
def load_rows(rows, c, exists, width):
    """Columns c of the rows that start at the pointers `rows`; 0 where there are none."""
    return tl.load(rows[:, None] + c[None, :], mask=exists[:, None] & (c < width)[None, :], other=0.0)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a @ b. UPCAST: for triton's interpreter, whose products of bfloat16 tiles are garbage; the same numbers."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def products(
    a_rows, a_exists, b_rows, b_exists, width, SQUARES: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """([BLOCK_A, BLOCK_B] products of rows, squared norms of the rows b if SQUARES)."""
    acc = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
    squares = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
    for c0 in range(0, width, BLOCK_K):
        c = c0 + tl.arange(0, BLOCK_K)
        a = load_rows(a_rows, c, a_exists, width)
        b = load_rows(b_rows, c, b_exists, width)
        if SQUARES:
            wide = b.to(tl.float32)
            squares += wide * wide
        acc = multiply(a, tl.trans(b), acc, PRECISION, UPCAST)
    return acc, tl.sum(squares, 1)


@triton.jit
def pairs(a_rows, b_rows, exists, width, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Row by row (a.b, a.a, b.b) in float32: of positives, not from the products of tiles, which may be tf32."""
    ab = tl.zeros([BLOCK, BLOCK_K], tl.float32)
    aa = tl.zeros([BLOCK, BLOCK_K], tl.float32)
    bb = tl.zeros([BLOCK, BLOCK_K], tl.float32)
    for c0 in range(0, width, BLOCK_K):
        c = c0 + tl.arange(0, BLOCK_K)
        a = load_rows(a_rows, c, exists, width).to(tl.float32)
        b = load_rows(b_rows, c, exists, width).to(tl.float32)
        ab += a * b
        aa += a * a
        bb += b * b
    return tl.sum(ab, 1), tl.sum(aa, 1), tl.sum(bb, 1)


@triton.jit
def inverse_norm(squares, NORMALIZE: tl.constexpr):
    """(norm, 1 / (norm + eps)) or (1, 1)."""
    one = tl.full(squares.shape, 1.0, tl.float32)
    if NORMALIZE:
        norm = tl.sqrt_rn(squares)
        return norm, tl.div_rn(one, norm + _EPS)
    else:
        return one, one


@triton.jit
def positives(
    q_rows, k_rows, exists, width, scale, NORMALIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """(q_hat.k_hat / T, norm of q, 1 / (it + eps), norm of k, 1 / (it + eps)) of each row. Forward and backward take
    the same sums in the same order."""
    qk, qq, kk = pairs(q_rows, k_rows, exists, width, BLOCK, BLOCK_K)
    q_norm, q_inverse = inverse_norm(qq, NORMALIZE)
    k_norm, k_inverse = inverse_norm(kk, NORMALIZE)
    return (qk * q_inverse) * k_inverse * scale, q_norm, q_inverse, k_norm, k_inverse


@triton.jit
def _weight(from_, strides, layer, row, image_queries, j, exists):
    """Entries (row, j) of a (B, S, M) weight, read where they are: expanded dimensions have stride 0."""
    by_problem, by_query, by_key = pick_strides(strides, layer)
    problem = (row // image_queries).to(tl.int64)
    query = (row % image_queries).to(tl.int64)
    at = pick(from_, layer) + (problem * by_problem + query * by_query) + j.to(tl.int64) * by_key
    return tl.load(at, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def logits(
    acc, i, j, exists, i_inverse, j_inverse, row, image_queries, layer, scale,
    log_weight, log_strides, similarity_weight, similarity_strides, IN_IMAGE: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """(similarity s, logit z, similarity weight) of the products of queries i and keys j, each given as a column or a
    row. z is -inf where there is no pair, and of a query and its own key."""
    s = acc
    if NORMALIZE:
        s = (s * i_inverse) * j_inverse
    s = s * scale
    if IN_IMAGE:
        exists = exists & (i != j)
    m = tl.full(acc.shape, 1.0, tl.float32)
    if similarity_weight is not None:
        m = _weight(similarity_weight, similarity_strides, layer, row, image_queries, j, exists)
        s = s * m
    z = s
    if log_weight is not None:
        z += _weight(log_weight, log_strides, layer, row, image_queries, j, exists)
    return s, tl.where(exists, z, float("-inf")), m


# ---- numbers ---------------------------------------------------------------------------------------------------------


@triton.jit
def finite_or_zero(x):
    """What to subtract from a row of logits, of which x is the maximum: x, but 0 instead of an infinity, whose
    difference from itself is NaN: of +inf the exponential and the sum are then infinite. NaN passes."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def sum_or_zero(lse):
    """What to subtract from a row of logits, of which lse is the log-sum-exp: 0 where there is no negative. Where it is
    +inf, every finite logit has probability 0 and an infinite one NaN."""
    return tl.where(lse == float("-inf"), 0.0, lse)


@triton.jit
def softplus(d):
    """(log(1 + e^d), sigmoid(d)). With e = e^-|d| and w = e / (2 + e) <= 1/3, log(1 + e) = 2 artanh(w): the series to
    w^17 keeps every digit of a small loss, of which the logarithm of 1 + e would lose some. NaN passes."""
    e = tl.exp(-tl.abs(d))
    w = e / (2.0 + e)
    s = w * w
    series = s * (1.0 / 17) + 1.0 / 15
    series = series * s + 1.0 / 13
    series = series * s + 1.0 / 11
    series = series * s + 1.0 / 9
    series = series * s + 1.0 / 7
    series = series * s + 1.0 / 5
    series = series * s + 1.0 / 3
    log1p = 2.0 * (w + w * (s * series))
    return tl.where(d > 0, d, 0.0) + log1p, tl.where(d > 0, 1.0, e) / (1.0 + e)


@triton.jit
def through_norm(g, x, dot, norm, inverse, NORMALIZE: tl.constexpr):
    """The gradient of rows x from that of their normalised selves x_hat, g; dot: x_hat.g of each row."""
    if NORMALIZE:
        # x / norm first: norm may be as small as 1e-22, its inverse times another large one is beyond float32
        along = tl.where(norm > 0, 1.0 / tl.where(norm > 0, norm, 1.0), 0.0)
        return g * inverse[:, None] - (x * along[:, None]) * (inverse * dot)[:, None]
    else:
        return g


@triton.jit
def store_rows(rows, c, v, exists, width, norm, NORMALIZE: tl.constexpr):
    """v in the rows' dtype. The gradient of a row of zeros, 1e7 times that of its normalised self, ends at float16's
    largest number instead of in infinity."""
    kind: tl.constexpr = rows.dtype.element_ty
    if NORMALIZE and kind == tl.float16:
        held = tl.where(v > _HALF_MAX, _HALF_MAX, tl.where(v < -_HALF_MAX, -_HALF_MAX, v))
        v = tl.where((norm == 0)[:, None], held, v)
    tl.store(rows[:, None] + c[None, :], v.to(kind), mask=exists[:, None] & (c < width)[None, :])
