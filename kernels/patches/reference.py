"""Sampling of patch features in plain torch: oracle of the fused implementations, and what runs where they cannot."""

from __future__ import annotations

import torch


def sample(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """x (B, C, *spatial), ids (P,) -> (B, P, C), dense."""
    return x.flatten(2).index_select(2, ids).transpose(1, 2).contiguous()
