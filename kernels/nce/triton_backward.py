"""Device code of the contrastive losses, backward: each tile of logits is computed again. Conventions: triton_parts.py.

With row gradient g_i, a_i the derivative of loss i by its log-sum-exp, and p_ij = exp(z_ij - lse_i), the gradients of
the logits are dz_ij = g_i a_i p_ij for negatives and -g_i a_i for the positive. The positive's part never enters a
product of 16-bit tiles: p_ij - 1 rounded to 16 bits would leave nothing of a small difference.

What the normalisation of a row x takes back is x_hat . dx_hat = sum of dz * s over the row's logits: known from the
tiles of logits alone, so that chunks of the width need nothing from one another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.nce.spec import INVERSE_NORM, LSE, LSE_GRAD
from kernels.nce.triton_parts import (
    PLAIN,
    inverse_norm,
    load_rows,
    locate,
    logits,
    multiply,
    pairs,
    pick,
    positives,
    products,
    rows_at,
    store_rows,
    sum_or_zero,
    through_norm,
)

_LSE = tl.constexpr(LSE)
_LSE_GRAD = tl.constexpr(LSE_GRAD)
_INVERSE_NORM = tl.constexpr(INVERSE_NORM)


@triton.jit
def _row_factor(grad, stats, total, at, exists):
    """g_i a_i of each row: its logits' gradients are this times a probability, or times -1."""
    g = tl.load(grad + at, mask=exists, other=0.0)
    return g * tl.load(stats + _LSE_GRAD * total + at, mask=exists, other=0.0)


@triton.jit
def _add_weighted(weights, x, inverse, out, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """out + weights @ (rows x, normalised), the weights in x's dtype."""
    if NORMALIZE:
        if x.dtype == tl.float16:  # an inverse norm may leave its range, x / norm does not
            x = (x.to(tl.float32) * inverse[:, None]).to(x.dtype)
        else:
            weights = weights * inverse[None, :]
    return multiply(weights.to(x.dtype), x, out, PRECISION, UPCAST)


@triton.jit(do_not_specialize=PLAIN)
def nce_backward_rows(
    q, k, negatives, log_weight, similarity_weight, grad, stats, dq, dk, dlog_weight,
    sizes, log_strides, similarity_strides, total, scale,
    IN_IMAGE: tl.constexpr, SHARED: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A program: BLOCK_Q queries and BLOCK_C columns. Gradients of q, of log_weight, and of k where keys are positives
    alone (negatives are given); None where not needed."""
    layer, pid, num_queries, num_keys, width, image_queries, first = locate(tl.program_id(0), sizes)
    chunks = tl.cdiv(width, BLOCK_C)
    tiles = tl.cdiv(num_queries, BLOCK_Q)
    chunk = pid % chunks
    problem = pid // chunks // tiles
    i = (pid // chunks % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = i < num_queries
    row = problem * num_queries + i
    q_rows = rows_at(pick(q, layer), row, width)
    k_rows = rows_at(pick(k, layer), row, width)
    positive, q_norm, q_inverse, k_norm, k_inverse = positives(
        q_rows, k_rows, exists, width, scale, NORMALIZE, BLOCK_Q, BLOCK_K
    )
    factor = _row_factor(grad, stats, total, first + row, exists)
    if dq is not None or dlog_weight is not None:
        lse = tl.load(stats + _LSE * total + first + row, mask=exists, other=0.0)
        base = sum_or_zero(lse)
        keys = pick(k, layer)
        if not IN_IMAGE:
            keys = pick(negatives, layer)
        if not SHARED:
            keys += problem.to(tl.int64) * num_keys * width
        out = tl.zeros([BLOCK_Q, BLOCK_C], tl.float32)
        # of probabilities that sum to 1; where there is nothing to sum, the positive stays
        dot = tl.where(lse == float("-inf"), -positive, 0.0)
        for j0 in range(0, num_keys, BLOCK_N):
            j = j0 + tl.arange(0, BLOCK_N)
            known = j < num_keys
            key_rows = rows_at(keys, j, width)
            acc, squares = products(
                q_rows, exists, key_rows, known, width, NORMALIZE, BLOCK_Q, BLOCK_N, BLOCK_K, PRECISION, UPCAST
            )
            norm, inverse = inverse_norm(squares, NORMALIZE)
            pair = exists[:, None] & known[None, :]
            s, z, m = logits(
                acc, i[:, None], j[None, :], pair, q_inverse[:, None], inverse[None, :], row[:, None], image_queries,
                layer, scale, log_weight, log_strides, similarity_weight, similarity_strides, IN_IMAGE, NORMALIZE,
            )  # fmt: skip
            p = tl.exp(z - base[:, None])
            if dlog_weight is not None:
                if chunk == 0:
                    at = row.to(tl.int64)[:, None] * num_keys + j[None, :]
                    tl.store(pick(dlog_weight, layer) + at, factor[:, None] * p, mask=pair)
            if dq is not None:
                if NORMALIZE:
                    dot += tl.sum(p * (s - positive[:, None]), 1)
                if similarity_weight is not None:
                    p = p * m
                key = load_rows(key_rows, c, known, width)
                out = _add_weighted(p, key, inverse, out, NORMALIZE, PRECISION, UPCAST)
        if dq is not None:
            own = load_rows(k_rows, c, exists, width).to(tl.float32) * k_inverse[:, None]
            g = (out - own) * (factor * scale)[:, None]
            x = load_rows(q_rows, c, exists, width).to(tl.float32)
            g = through_norm(g, x, factor * dot, q_norm, q_inverse, NORMALIZE)
            store_rows(rows_at(pick(dq, layer), row, width), c, g, exists, width, q_norm, NORMALIZE)
    if dk is not None:
        g = load_rows(q_rows, c, exists, width).to(tl.float32) * (q_inverse * -factor * scale)[:, None]
        x = load_rows(k_rows, c, exists, width).to(tl.float32)
        g = through_norm(g, x, -factor * positive, k_norm, k_inverse, NORMALIZE)
        store_rows(rows_at(pick(dk, layer), row, width), c, g, exists, width, k_norm, NORMALIZE)


@triton.jit
def _largest_factor(grad, stats, total, at, num_queries, BLOCK: tl.constexpr):
    """max |g_i a_i| over a problem's queries, 1 if all are 0."""
    peak = tl.zeros([BLOCK], tl.float32)
    for i0 in range(0, num_queries, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        peak = tl.maximum(peak, tl.abs(_row_factor(grad, stats, total, at + i, i < num_queries)))
    largest = tl.max(peak, 0)
    return tl.where(largest > 0, largest, 1.0)


@triton.jit(do_not_specialize=PLAIN)
def nce_backward_keys(
    q, k, negatives, log_weight, similarity_weight, grad, stats, dkeys,
    sizes, log_strides, similarity_strides, total, scale,
    IN_IMAGE: tl.constexpr, SHARED: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A program: BLOCK_N keys and BLOCK_C columns against all queries of the problem, one after the other: no atomics.
    In-image keys are positives, too: of their own query."""
    layer, pid, num_queries, num_keys, width, image_queries, first = locate(tl.program_id(0), sizes)
    chunks = tl.cdiv(width, BLOCK_C)
    tiles = tl.cdiv(num_keys, BLOCK_N)
    chunk = pid % chunks
    problem = pid // chunks // tiles
    j = (pid // chunks % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    known = j < num_keys
    first_row = problem * num_queries
    from_q = pick(q, layer)
    keys = pick(k, layer)
    to = pick(dkeys, layer)
    if not IN_IMAGE:
        keys = pick(negatives, layer)
    if not SHARED:
        keys += problem.to(tl.int64) * num_keys * width
        to += problem.to(tl.int64) * num_keys * width
    key_rows = rows_at(keys, j, width)
    if IN_IMAGE:
        own_rows = rows_at(from_q, first_row + j, width)
        positive, own_norm, own_inverse, norm, inverse = positives(
            own_rows, key_rows, known, width, scale, NORMALIZE, BLOCK_N, BLOCK_K
        )
    else:
        squares = tl.zeros([BLOCK_N], tl.float32)
        if NORMALIZE:
            squares = pairs(key_rows, key_rows, known, width, BLOCK_N, BLOCK_K)[2]
        norm, inverse = inverse_norm(squares, NORMALIZE)
    # float16 holds nothing below 6e-8, and a mean's gradients of rows may be that small: relative to the largest
    largest = 1.0
    if key_rows.dtype.element_ty == tl.float16:
        largest = _largest_factor(grad, stats, total, first + first_row, num_queries, BLOCK_Q)
    out = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    dot = tl.zeros([BLOCK_N], tl.float32)
    for i0 in range(0, num_queries, BLOCK_Q):
        i = i0 + tl.arange(0, BLOCK_Q)
        exists = i < num_queries
        row = first_row + i
        at = first + row
        factor = _row_factor(grad, stats, total, at, exists) / largest
        base = sum_or_zero(tl.load(stats + _LSE * total + at, mask=exists, other=0.0))
        q_inverse = tl.load(stats + _INVERSE_NORM * total + at, mask=exists, other=0.0)
        q_rows = rows_at(from_q, row, width)
        acc, unused = products(
            key_rows, known, q_rows, exists, width, False, BLOCK_N, BLOCK_Q, BLOCK_K, PRECISION, UPCAST
        )
        s, z, m = logits(
            acc, i[None, :], j[:, None], known[:, None] & exists[None, :], q_inverse[None, :], inverse[:, None],
            row[None, :], image_queries, layer, scale,
            log_weight, log_strides, similarity_weight, similarity_strides, IN_IMAGE, NORMALIZE,
        )  # fmt: skip
        dz = tl.exp(z - base[None, :]) * factor[None, :]
        if NORMALIZE:
            dot += tl.sum(dz * s, 1)
        if similarity_weight is not None:
            dz = dz * m
        query = load_rows(q_rows, c, exists, width)
        out = _add_weighted(dz, query, q_inverse, out, NORMALIZE, PRECISION, UPCAST)
    if IN_IMAGE:
        own_factor = _row_factor(grad, stats, total, first + first_row + j, known) / largest
        own = load_rows(own_rows, c, known, width).to(tl.float32) * own_inverse[:, None]
        out -= own * own_factor[:, None]
        dot -= own_factor * positive
    x = load_rows(key_rows, c, known, width).to(tl.float32)
    g = through_norm(out * (largest * scale), x, dot * largest, norm, inverse, NORMALIZE)
    store_rows(rows_at(to, j, width), c, g, known, width, norm, NORMALIZE)
