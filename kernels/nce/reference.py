"""Contrastive losses in plain torch: the oracle in float64, the fallback elsewhere, and the second derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.nce.spec import EPS, Layer, Spec

Tensor = torch.Tensor


def wide(x: Tensor) -> Tensor:
    """float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def unit_rows(x: Tensor) -> Tensor:
    """x / (norm + EPS) over the last dimension. vector_norm's gradient at a row of zeros is 0, where that of a plain
    root is nan; what is left there is the derivative of x / EPS, which is that of the whole."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPS)


def rows(layer: Layer, spec: Spec) -> Tensor:
    """Losses (B, S), float32 or float64."""
    q, k = wide(layer.q), wide(layer.k)
    if spec.normalize:
        q, k = unit_rows(q), unit_rows(k)
    negatives = k
    if layer.negatives is not None:
        negatives = wide(layer.negatives)
        if spec.normalize:
            negatives = unit_rows(negatives)
    positive = (q * k).sum(-1) / spec.temperature
    logits = q @ negatives.transpose(-1, -2) / spec.temperature
    if layer.similarity_weight is not None:
        logits = logits * layer.similarity_weight
    if layer.log_weight is not None:
        logits = logits + layer.log_weight
    if layer.negatives is None:
        itself = torch.eye(q.shape[1], dtype=torch.bool, device=q.device)
        logits = logits.masked_fill(itself, float("-inf"))
    margin = torch.logsumexp(logits, -1) - positive
    # log(e^p + sum e^n) - p = log(1 + e^margin): no digits of a small loss are lost in the difference of two large logs
    return margin if spec.decoupled else -F.logsigmoid(-margin)
