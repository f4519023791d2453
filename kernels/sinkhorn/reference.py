"""Sinkhorn iterations in plain torch: the oracle of the fused implementations, and what runs where they cannot.

Differentiable to any order; computes in float64 for float64 inputs and in float32 for everything narrower.
"""

from __future__ import annotations

import torch

from kernels._dtypes import wide


def sinkhorn(log_kernel: torch.Tensor, iterations: int) -> torch.Tensor:
    """log plan of log_kernel (B, S, M), same dtype: rows scaled, then columns, `iterations` times, rows first.

    Rows are to sum to M / S and columns to 1. The columns are scaled last and do; the rows do in the limit. Rows are
    scaled to 1 here: the factor M / S is the same for all, and the next scaling of the columns takes it back.
    """
    x = wide(log_kernel)
    b = x.new_zeros(())
    for _ in range(iterations):
        a = -torch.logsumexp(x + b, 2, keepdim=True)
        b = -torch.logsumexp(x + a, 1, keepdim=True)
    return (x + a + b).to(log_kernel.dtype)
