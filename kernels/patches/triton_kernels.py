"""Device code of the patches room: rows out of maps (`gather`) and back (`scatter`), several maps in one launch.

One program is a tile of [BLOCK_P patches, BLOCK_C channels] of one sample of one map. The maps come as tuples of
pointers and of sizes, which are encoded (see kernels/_triton.py); a program finds its map by the number of the map's
first program. Nothing is added atomically: the first of the patches that show one position sums them all in their
order and alone writes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels._triton import decode


@triton.jit
def pick(pid, maps, ids, rows, sizes):
    """The map of program `pid`: pointers, the program's number within the map, sizes, strides."""
    x, at, row, size = maps[0], ids[0], rows[0], sizes[0]
    first, C, P, L, W, sn, sc, sh, sw = size[0], size[1], size[2], size[3], size[4], size[5], size[6], size[7], size[8]
    for i in tl.static_range(1, len(maps)):
        mine = pid >= decode(sizes[i][0])
        x = tl.where(mine, maps[i], x)
        at = tl.where(mine, ids[i], at)
        row = tl.where(mine, rows[i], row)
        first = tl.where(mine, sizes[i][0], first)
        C = tl.where(mine, sizes[i][1], C)
        P = tl.where(mine, sizes[i][2], P)
        L = tl.where(mine, sizes[i][3], L)
        W = tl.where(mine, sizes[i][4], W)
        sn = tl.where(mine, sizes[i][5], sn)
        sc = tl.where(mine, sizes[i][6], sc)
        sh = tl.where(mine, sizes[i][7], sh)
        sw = tl.where(mine, sizes[i][8], sw)
    pid -= decode(first)
    C, P, L, W = decode(C), decode(P), decode(L), decode(W)
    sn, sc, sh, sw = decode(sn).to(tl.int64), decode(sc).to(tl.int64), decode(sh).to(tl.int64), decode(sw).to(tl.int64)
    return x, at, row, pid, C, P, L, W, sn, sc, sh, sw


@triton.jit
def tile(pid, C, P, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """A program's sample, patches and channels."""
    blocks_c, blocks_p = tl.cdiv(C, BLOCK_C), tl.cdiv(P, BLOCK_P)
    c = (pid % blocks_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = (pid // blocks_c % blocks_p) * BLOCK_P + tl.arange(0, BLOCK_P)
    return (pid // blocks_c // blocks_p).to(tl.int64), p, c


@triton.jit
def gather(maps, ids, rows, sizes, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """A position outside the map reads nothing and yields NaN: to raise, the host would have to wait for the device."""
    x, at, row, pid, C, P, L, W, sn, sc, sh, sw = pick(tl.program_id(0), maps, ids, rows, sizes)
    n, p, c = tile(pid, C, P, BLOCK_P, BLOCK_C)
    position = tl.load(at + p, mask=p < P, other=-1)
    inside = (position >= 0) & (position < L)
    start = n * sn + (position // W) * sh + (position % W) * sw
    from_ = x + start[:, None] + c[None, :] * sc
    value = tl.load(from_, mask=inside[:, None] & (c < C)[None, :], other=float("nan"))
    to = row + (n * P + p)[:, None] * C + c[None, :]
    tl.store(to, value, mask=(p < P)[:, None] & (c < C)[None, :])


@triton.jit
def scatter(
    maps,
    ids,
    rows,
    sizes,
    UNIQUE: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Rows into maps of zeros, or with ADD onto what is there. UNIQUE: no position comes twice."""
    x, at, row, pid, C, P, L, W, sn, sc, sh, sw = pick(tl.program_id(0), maps, ids, rows, sizes)
    n, p, c = tile(pid, C, P, BLOCK_P, BLOCK_C)
    position = tl.load(at + p, mask=p < P, other=-1)
    writes = (position >= 0) & (position < L)
    row += n * P * C
    total = tl.load(row + p.to(tl.int64)[:, None] * C + c[None, :], mask=writes[:, None] & (c < C)[None, :], other=0.0)
    total = total.to(tl.float32)
    if not UNIQUE:
        for q0 in range(0, P, BLOCK_Q):
            q = q0 + tl.arange(0, BLOCK_Q)
            other = tl.load(at + q, mask=q < P, other=-1)
            same = (position[:, None] == other[None, :]) & writes[:, None]
            before = same & (q[None, :] < p[:, None])
            after = same & (q[None, :] > p[:, None])
            writes = writes & (tl.max(before.to(tl.int32), axis=1) == 0)
            # Rows of repeated positions are added one by one, which is slow, but few tiles have any. A product of the
            # rows with the 0/1 matrix `same` would be wrong: an infinity in one row would make NaN (0 * inf) in all.
            if tl.max(tl.max(after.to(tl.int32), axis=1), axis=0) > 0:
                for j in range(q0, tl.minimum(q0 + BLOCK_Q, P)):
                    again = (position == tl.load(at + j)) & (p < j)
                    more = tl.load(row + j * C.to(tl.int64) + c, mask=c < C, other=0.0).to(tl.float32)
                    total = tl.where(again[:, None], total + more[None, :], total)
    start = n * sn + (position // W) * sh + (position % W) * sw
    to = x + start[:, None] + c[None, :] * sc
    mask = writes[:, None] & (c < C)[None, :]
    if ADD:
        total += tl.load(to, mask=mask, other=0.0).to(tl.float32)
    tl.store(to, total.to(x.dtype.element_ty), mask=mask)
