"""Integers that kernels take in tuples: encoded by the launcher, decoded in the kernel (kernels/_triton.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from support.device_numerics import DEVICE

from kernels._triton import decode, encode

SIZES = (0, 1, 2, 16, 12345, 2**29, 2**30 - 2, 2**30 - 1, 2**31, 2**40)  # from 2^30 - 1 on encoded in 64 bits


@triton.jit
def _copy(y, sizes):
    for i in tl.static_range(len(sizes)):
        tl.store(y + i, decode(sizes[i]).to(tl.int64))


def test_sizes_survive_their_code():
    y = torch.zeros(len(SIZES), dtype=torch.int64, device=DEVICE)
    _copy[(1,)](y, tuple(map(encode, SIZES)))
    assert y.tolist() == list(SIZES)


def test_triton_sees_nothing_in_them():
    """Of 1 and of multiples of 16 it would make other kernels."""
    codes = [encode(n) for n in (*range(100), *SIZES)]
    assert all(code > 1 and code % 16 for code in codes)
    assert encode(2**30 - 2) < 2**31 <= encode(2**30 - 1)
