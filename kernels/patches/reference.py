"""Sampling of patch features in plain torch: oracle of the fused implementations, and what runs where they cannot."""

from __future__ import annotations

import math

import torch

from kernels._dtypes import wide
from kernels.patches.spec import Layout


def sample(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """x (B, C, *spatial), ids (P,) -> (B, P, C), dense."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:])).index_select(2, ids).transpose(1, 2).contiguous()


def spread(rows: torch.Tensor, ids: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Rows (B, P, C) to a map that is zero elsewhere: the transposed of `sample`. Rows of one position add up."""
    added = wide(rows)
    total = added.new_zeros((*layout.size[:2], math.prod(layout.size[2:])))
    return total.index_add(2, ids, added.transpose(1, 2)).reshape(layout.size).to(rows.dtype)
