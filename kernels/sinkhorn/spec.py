"""What the files of this room share: the layout of what forward leaves for backward."""

from __future__ import annotations

import torch


def new_potentials(log_kernel: torch.Tensor, iterations: int) -> torch.Tensor:
    """Allocates the log scalings after each iteration, float32 (B, iterations, S + M + 1): of the rows, of the columns,
    and one number more. How they are encoded is each implementation's own: csrc/cpu/sinkhorn, triton_kernels.py."""
    b, s, m = log_kernel.shape
    return torch.empty((b, iterations, s + m + 1), dtype=torch.float32, device=log_kernel.device)
