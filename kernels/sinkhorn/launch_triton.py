"""Tensors to tiles and grids for the triton kernels (triton_kernels.py). No autograd, no checks of arguments.

Launches go to the current stream of the tensors' device, nothing is copied to the host and all memory comes from
torch: safe inside CUDA graphs once each kernel has run.
"""

from __future__ import annotations

import math

import torch

from kernels import _triton
from kernels._triton import cdiv, on, pow2
from kernels.sinkhorn import triton_kernels
from kernels.sinkhorn.spec import new_potentials

Tensor = torch.Tensor

# Sides of the largest tile of a program that owns its problem: 4096 elements are 8 per thread of 16 warps, with 99 to
# 118 registers each by ptxas for sm_80 to sm_100. With 16 per thread the addresses and masks of a tile no longer fit:
# up to 168 bytes spilled.
ROWS, COLUMNS = 16, 256
TILE = 32, 128  # of `gradient`, whose programs share a problem


def _tile(s: int, m: int, rows: int, columns: int) -> tuple[int, int, int]:
    """(rows, columns, warps) of a tile no larger than asked for, nor than the matrix needs."""
    block_s, block_m = min(pow2(s), rows), min(pow2(m), columns)
    return block_s, block_m, min(max(block_s * block_m // 256, 1), 16)


def forward(log_kernel: Tensor, iterations: int, keep: bool = True) -> tuple[Tensor, Tensor]:
    """(log plan, potentials) of log_kernel (B, S, M). `keep` changes nothing here: the kernel needs the memory of the
    potentials in any case."""
    x = log_kernel.contiguous()
    b, s, m = x.shape
    plan, potentials = torch.empty_like(x), new_potentials(x, iterations)
    if b == 0:
        return plan, potentials
    block_s, block_m, warps = _tile(s, m, ROWS, COLUMNS)
    with on(x):
        _triton.run(
            triton_kernels.iterate,
            b,
            warps,
            *(x, plan, potentials, s, m, iterations, math.log(m / s)),
            BLOCK_S=block_s,
            BLOCK_M=block_m,
        )
    return plan, potentials


def backward(grad: Tensor, log_kernel: Tensor, potentials: Tensor) -> Tensor:
    """Gradient of log_kernel from that of the log plan, through every iteration."""
    x, grad = log_kernel.contiguous(), grad.contiguous()
    b, s, m = x.shape
    dx, dpotentials = torch.empty_like(x), torch.empty_like(potentials)
    if b == 0:
        return dx
    sizes = (s, m, potentials.shape[1], math.log(m / s))
    block_s, block_m, warps = _tile(s, m, ROWS, COLUMNS)
    small_s, small_m, few = _tile(s, m, *TILE)
    tiles = cdiv(s, small_s) * cdiv(m, small_m)
    with on(x):
        _triton.run(
            triton_kernels.sweep_potentials,
            b,
            warps,
            *(grad, x, potentials, dpotentials, *sizes),
            BLOCK_S=block_s,
            BLOCK_M=block_m,
        )
        _triton.run(
            triton_kernels.gradient,
            b * tiles,
            few,
            *(grad, x, potentials, dpotentials, dx, *sizes),
            BLOCK_S=small_s,
            BLOCK_M=small_m,
        )
    return dx
