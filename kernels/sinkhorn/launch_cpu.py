"""Tensors to addresses and sizes for the C++ operators (csrc/cpu/sinkhorn). No autograd, no checks of arguments."""

from __future__ import annotations

import torch

from kernels._native import DTYPE_CODES, load, pointer
from kernels.sinkhorn.spec import new_potentials

Tensor = torch.Tensor

# The arguments of each C++ function, in order, by the names of csrc/cpu/sinkhorn/bind.cpp; compared when the library
# loads.
_PROBLEM = "problems s m iterations dtype log_kernel potentials"
ARGUMENTS = {"sinkhorn_forward": f"{_PROBLEM} log_plan", "sinkhorn_backward": f"{_PROBLEM} grad grad_log_kernel"}


def forward(log_kernel: Tensor, iterations: int, keep: bool = True) -> tuple[Tensor, Tensor | None]:
    """(log plan, potentials) of log_kernel (B, S, M). Without `keep` the potentials are None."""
    x = log_kernel.contiguous()
    plan = torch.empty_like(x)
    potentials = new_potentials(x, iterations) if keep else None
    kept = pointer(potentials)
    load().sinkhorn_forward(*x.shape, iterations, DTYPE_CODES[x.dtype], x.data_ptr(), kept, plan.data_ptr())
    return plan, potentials


def backward(grad: Tensor, log_kernel: Tensor, potentials: Tensor) -> Tensor:
    """Gradient of log_kernel from that of the log plan, through every iteration."""
    x, grad = log_kernel.contiguous(), grad.contiguous()
    dx = torch.empty_like(x)
    load().sinkhorn_backward(
        *x.shape,
        potentials.shape[1],
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        potentials.data_ptr(),
        grad.data_ptr(),
        dx.data_ptr(),
    )
    return dx
