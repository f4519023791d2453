"""Where the cases of the implementations for GPUs run, and the rule their numbers are held to."""

from __future__ import annotations

import torch

from kernels import backends

# without a GPU on the CPU: in Triton's interpreter, or in the emulation of CUDA
DEVICE = "cuda" if torch.cuda.is_available() and not backends.interpreting() else "cpu"


def close(name, got, torchs, exact, terms=0.0):
    """The error against float64 is at most twice that of plain torch in the same dtype, plus 4 units of the dtype's
    rounding at the largest value of the result. terms: size of the terms that cancel in the result, where it is far
    above the result's own."""
    assert got.shape == exact.shape and got.dtype == torchs.dtype, name
    error, allowed = (got.double() - exact).abs().max(), (torchs.double() - exact).abs().max()
    floor = 4 * torch.finfo(got.dtype).eps * max(exact.abs().max().item(), terms)
    assert error <= 2 * allowed + floor, f"{name}: error {error:.2e}, torch's {allowed:.2e}, floor {floor:.2e}"
