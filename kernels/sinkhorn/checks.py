"""Arguments of the sinkhorn room: each error names the argument, what was given and what is wanted."""

from __future__ import annotations

from typing import Any

from kernels._checks import check_tensor


def check_log_kernel(log_kernel: Any) -> None:
    """log_kernel: floating (B, S, M) or (S, M), at least one element in each problem."""
    check_tensor("log_kernel", log_kernel, "(B, S, M) or (S, M)")
    if log_kernel.dim() not in (2, 3):
        raise ValueError(f"log_kernel: got shape {tuple(log_kernel.shape)}, want (B, S, M) or (S, M)")
    if 0 in log_kernel.shape[-2:]:
        raise ValueError(f"log_kernel: got shape {tuple(log_kernel.shape)}, want at least one element a problem")
