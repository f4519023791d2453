"""Device code of the contrastive losses, forward: losses and the statistics that backward starts from. Conventions:
triton_parts.py."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.nce.spec import INVERSE_NORM, LSE, LSE_GRAD
from kernels.nce.triton_parts import (
    PLAIN,
    finite_or_zero,
    inverse_norm,
    locate,
    logits,
    pick,
    positives,
    products,
    rows_at,
    softplus,
)

_LSE = tl.constexpr(LSE)
_LSE_GRAD = tl.constexpr(LSE_GRAD)
_INVERSE_NORM = tl.constexpr(INVERSE_NORM)


@triton.jit(do_not_specialize=PLAIN)
def nce_forward(
    q, k, negatives, log_weight, similarity_weight, loss, stats, sizes, log_strides, similarity_strides, total, scale,
    IN_IMAGE: tl.constexpr, SHARED: tl.constexpr, NORMALIZE: tl.constexpr, DECOUPLED: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A program: BLOCK_Q queries of one problem against all its keys, tile by tile, with a running log-sum-exp."""
    layer, pid, num_queries, num_keys, width, image_queries, first = locate(tl.program_id(0), sizes)
    tiles = tl.cdiv(num_queries, BLOCK_Q)
    problem = pid // tiles
    i = (pid % tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    exists = i < num_queries
    row = problem * num_queries + i
    q_rows = rows_at(pick(q, layer), row, width)
    keys = pick(k, layer)
    positive, q_norm, q_inverse, k_norm, k_inverse = positives(
        q_rows, rows_at(keys, row, width), exists, width, scale, NORMALIZE, BLOCK_Q, BLOCK_K
    )
    if not IN_IMAGE:
        keys = pick(negatives, layer)
    if not SHARED:
        keys += problem.to(tl.int64) * num_keys * width
    high = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total_exp = tl.zeros([BLOCK_Q], tl.float32)
    for j0 in range(0, num_keys, BLOCK_N):
        j = j0 + tl.arange(0, BLOCK_N)
        known = j < num_keys
        acc, squares = products(
            q_rows, exists, rows_at(keys, j, width), known, width,
            NORMALIZE, BLOCK_Q, BLOCK_N, BLOCK_K, PRECISION, UPCAST,
        )  # fmt: skip
        norm, inverse = inverse_norm(squares, NORMALIZE)
        s, z, m = logits(
            acc, i[:, None], j[None, :], exists[:, None] & known[None, :], q_inverse[:, None], inverse[None, :],
            row[:, None], image_queries, layer, scale,
            log_weight, log_strides, similarity_weight, similarity_strides, IN_IMAGE, NORMALIZE,
        )  # fmt: skip
        higher = tl.maximum(high, tl.max(z, 1))
        # 0 for a row that has had none but left-out keys (-inf) so far; NaN enters the sum by its own exponential
        base = finite_or_zero(higher)
        total_exp = total_exp * tl.exp(high - base) + tl.sum(tl.exp(z - base[:, None]), 1)
        high = higher
    lse = finite_or_zero(high) + tl.log(total_exp)
    margin = lse - positive
    if DECOUPLED:
        value = margin
        lse_grad = tl.full([BLOCK_Q], 1.0, tl.float32)
    else:
        value, lse_grad = softplus(margin)
    at = first + row
    tl.store(loss + at, value, mask=exists)
    tl.store(stats + _LSE * total + at, lse, mask=exists)
    tl.store(stats + _LSE_GRAD * total + at, lse_grad, mask=exists)
    tl.store(stats + _INVERSE_NORM * total + at, q_inverse, mask=exists)
