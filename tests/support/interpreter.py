"""Triton's interpreter as the triton cases need it. Imported only where it runs (TRITON_INTERPRET=1)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter


@triton.jit
def _loop(x, n):
    for _ in range(n):
        tl.store(x, tl.load(x) + 1)


def why_not() -> str:
    """Why this triton cannot interpret the kernels; empty if it can."""
    try:
        _loop[(1,)](torch.zeros(1), 2)
    except Exception as error:
        if "only 0-dimensional arrays can be converted to Python scalars" not in str(error):
            raise
        return "this triton's interpreter cannot loop with this numpy (seen: triton 3.6 with numpy 2.4)"
    return ""


def _create_dot(self, a, b, d, *precision):
    """Exact, rounded once. numpy's float32 product rounds as the BLAS of the machine does: on one with AVX2 kernels
    six times as far from float64 as torch's. The cases are about the kernels around it."""
    exact = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + d.data
    return interpreter.TensorHandle(exact.astype(d.data.dtype), d.dtype.scalar)


interpreter.InterpreterBuilder.create_dot = _create_dot
