"""Device code of the Sinkhorn iteration; formulas: csrc/cpu/sinkhorn/sinkhorn.cpp, grids: launch_triton.py.

One program runs all iterations of one problem: each half iteration needs all of the other half's results, and a
barrier inside a program is far cheaper than a launch. Its matrix is read tile by tile from second-level cache, twice
per iteration, with a running maximum and sum. Potentials pass from one half to the next through global memory, where
backward finds them. Those of the rows are kept without the log(M / S) that each contains, and sums are taken in the
order log-sum-exp took them: so that rows and columns sum to 1 in backward, too, where entries are in the thousands.

Backward: `sweep_potentials` goes through the iterations in reverse and leaves the gradients of all potentials; then
`gradient` adds up what each iteration contributes to a tile, one program per tile. Nothing is added atomically.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)

PLAIN = ["S", "M", "T"]  # see kernels/_triton.py


@triton.jit
def _tile(x_ptr, i, j, S, M, other):
    """Tile of a row-major (S, M) matrix, float32; `other` outside."""
    inside = (i < S)[:, None] & (j < M)[None, :]
    return tl.load(x_ptr + i[:, None] * M + j[None, :], mask=inside, other=other).to(tl.float32)


@triton.jit
def _joined(most, total, x, axis: tl.constexpr):
    """Running (maximum, sum of exp(x - maximum)) with one tile more."""
    high = tl.maximum(most, tl.max(x, axis))
    base = tl.where(high == -float("inf"), 0.0, high)  # nothing but -inf so far: no inf - inf
    if axis == 1:
        term = tl.sum(tl.exp2((x - base[:, None]) * _LOG2E), 1)
    else:
        term = tl.sum(tl.exp2((x - base[None, :]) * _LOG2E), 0)
    return high, total * tl.exp2((most - base) * _LOG2E) + term


@triton.jit(do_not_specialize=PLAIN)
def iterate(x_ptr, plan_ptr, potentials_ptr, S, M, T, log_ratio, BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr):
    """Log plan of one problem, and all its potentials (T, S + M + 1); the last of each row is not written."""
    problem = tl.program_id(0).to(tl.int64)
    x_ptr += problem * S * M
    plan_ptr += problem * S * M
    potentials_ptr += problem * T * (S + M + 1)
    for t in range(T):
        a_ptr = potentials_ptr + t * (S + M + 1)
        b_ptr = a_ptr + S
        before_ptr = b_ptr - (S + M + 1)
        for i0 in range(0, S, BLOCK_S):
            i = i0 + tl.arange(0, BLOCK_S)
            most = tl.full([BLOCK_S], -float("inf"), tl.float32)
            total = tl.zeros([BLOCK_S], tl.float32)
            for j0 in range(0, M, BLOCK_M):
                j = j0 + tl.arange(0, BLOCK_M)
                b = tl.load(before_ptr + j, mask=(j < M) & (t > 0), other=0.0)
                x = _tile(x_ptr, i, j, S, M, -float("inf"))
                most, total = _joined(most, total, x + b[None, :], 1)
            tl.store(a_ptr + i, -(most + tl.log2(total) * _LN2), mask=i < S)
        tl.debug_barrier()
        for j0 in range(0, M, BLOCK_M):
            j = j0 + tl.arange(0, BLOCK_M)
            most = tl.full([BLOCK_M], -float("inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)
            for i0 in range(0, S, BLOCK_S):
                i = i0 + tl.arange(0, BLOCK_S)
                a = tl.load(a_ptr + i, mask=i < S, other=0.0)
                x = _tile(x_ptr, i, j, S, M, -float("inf"))
                most, total = _joined(most, total, x + (a + log_ratio)[:, None], 0)
            tl.store(b_ptr + j, -(most + tl.log2(total) * _LN2), mask=j < M)
        tl.debug_barrier()
    a_ptr = potentials_ptr + (T - 1) * (S + M + 1)
    for i0 in range(0, S, BLOCK_S):
        i = i0 + tl.arange(0, BLOCK_S)
        a = tl.load(a_ptr + i, mask=i < S, other=0.0)
        for j0 in range(0, M, BLOCK_M):
            j = j0 + tl.arange(0, BLOCK_M)
            b = tl.load(a_ptr + S + j, mask=j < M, other=0.0)
            y = _tile(x_ptr, i, j, S, M, 0.0) + (a + log_ratio)[:, None] + b[None, :]
            inside = (i < S)[:, None] & (j < M)[None, :]
            tl.store(plan_ptr + i[:, None] * M + j[None, :], y.to(plan_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=PLAIN)
def sweep_potentials(
    grad_ptr, x_ptr, potentials_ptr, dpotentials_ptr, S, M, T, log_ratio, BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Gradients of all potentials of one problem, laid out as they are, from that of its log plan."""
    problem = tl.program_id(0).to(tl.int64)
    grad_ptr += problem * S * M
    x_ptr += problem * S * M
    potentials_ptr += problem * T * (S + M + 1)
    dpotentials_ptr += problem * T * (S + M + 1)
    last = (T - 1) * (S + M + 1)
    for j0 in range(0, M, BLOCK_M):  # columns of the last iteration: sums of the gradient itself
        j = j0 + tl.arange(0, BLOCK_M)
        total = tl.zeros([BLOCK_M], tl.float32)
        for i0 in range(0, S, BLOCK_S):
            i = i0 + tl.arange(0, BLOCK_S)
            total += tl.sum(_tile(grad_ptr, i, j, S, M, 0.0), 0)
        tl.store(dpotentials_ptr + last + S + j, total, mask=j < M)
    tl.debug_barrier()
    for back in range(T):
        t = T - 1 - back
        at = t * (S + M + 1)
        a_ptr = potentials_ptr + at
        b_ptr = a_ptr + S
        da_ptr = dpotentials_ptr + at
        db_ptr = da_ptr + S
        for i0 in range(0, S, BLOCK_S):
            i = i0 + tl.arange(0, BLOCK_S)
            a = tl.load(a_ptr + i, mask=i < S, other=0.0)
            total = tl.zeros([BLOCK_S], tl.float32)
            for j0 in range(0, M, BLOCK_M):
                j = j0 + tl.arange(0, BLOCK_M)
                b = tl.load(b_ptr + j, mask=j < M, other=0.0)
                db = tl.load(db_ptr + j, mask=j < M, other=0.0)
                x = _tile(x_ptr, i, j, S, M, -float("inf"))
                total -= tl.sum(tl.exp2((x + (a + log_ratio)[:, None] + b[None, :]) * _LOG2E) * db[None, :], 1)
                if back == 0:
                    total += tl.sum(_tile(grad_ptr, i, j, S, M, 0.0), 1)
            tl.store(da_ptr + i, total, mask=i < S)
        tl.debug_barrier()
        if t > 0:
            before_ptr = b_ptr - (S + M + 1)
            for j0 in range(0, M, BLOCK_M):
                j = j0 + tl.arange(0, BLOCK_M)
                b = tl.load(before_ptr + j, mask=j < M, other=0.0)
                total = tl.zeros([BLOCK_M], tl.float32)
                for i0 in range(0, S, BLOCK_S):
                    i = i0 + tl.arange(0, BLOCK_S)
                    a = tl.load(a_ptr + i, mask=i < S, other=0.0)
                    da = tl.load(da_ptr + i, mask=i < S, other=0.0)
                    x = _tile(x_ptr, i, j, S, M, -float("inf"))
                    total -= tl.sum(tl.exp2((x + b[None, :] + a[:, None]) * _LOG2E) * da[:, None], 0)
                tl.store(db_ptr - (S + M + 1) + j, total, mask=j < M)
            tl.debug_barrier()


@triton.jit(do_not_specialize=PLAIN)
def gradient(
    grad_ptr,
    x_ptr,
    potentials_ptr,
    dpotentials_ptr,
    dx_ptr,
    S,
    M,
    T,
    log_ratio,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One tile of the log kernel's gradient."""
    columns = tl.cdiv(M, BLOCK_M)
    tiles = tl.cdiv(S, BLOCK_S) * columns
    problem = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i = (tile // columns) * BLOCK_S + tl.arange(0, BLOCK_S)
    j = (tile % columns) * BLOCK_M + tl.arange(0, BLOCK_M)
    potentials_ptr += problem * T * (S + M + 1)
    dpotentials_ptr += problem * T * (S + M + 1)
    x = _tile(x_ptr + problem * S * M, i, j, S, M, -float("inf"))
    total = _tile(grad_ptr + problem * S * M, i, j, S, M, 0.0)
    before = tl.zeros([BLOCK_M], tl.float32)
    for t in range(T):
        at = t * (S + M + 1)
        a = tl.load(potentials_ptr + at + i, mask=i < S, other=0.0)
        da = tl.load(dpotentials_ptr + at + i, mask=i < S, other=0.0)
        b = tl.load(potentials_ptr + at + S + j, mask=j < M, other=0.0)
        db = tl.load(dpotentials_ptr + at + S + j, mask=j < M, other=0.0)
        total -= tl.exp2((x + before[None, :] + a[:, None]) * _LOG2E) * da[:, None]
        total -= tl.exp2((x + (a + log_ratio)[:, None] + b[None, :]) * _LOG2E) * db[None, :]
        before = b
    inside = (i < S)[:, None] & (j < M)[None, :]
    at = problem * S * M + i[:, None] * M + j[None, :]
    tl.store(dx_ptr + at, total.to(dx_ptr.dtype.element_ty), mask=inside)
