"""What the files of this room share: the operator's static options, a layer's tensors, new memory for its results."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor

EPS = 1e-7  # added to a row's norm, as in CUT's Normalize

# Rows of the statistics (3, R): log-sum-exp of the negatives' logits; the derivative of the loss by it, sigmoid(lse -
# positive) or 1 if decoupled; 1 / (norm + EPS) of the query, or 1 without `normalize`.
LSE, LSE_GRAD, INVERSE_NORM = 0, 1, 2


class Spec(NamedTuple):
    """Static options of one call."""

    temperature: float
    normalize: bool
    decoupled: bool


class Needs(NamedTuple):
    """Which tensors of a layer want a gradient."""

    q: bool
    k: bool
    negatives: bool
    log_weight: bool


class Layer(NamedTuple):
    """One layer's tensors, checked. B problems of S queries with M negatives each, width C.

    q, k (B, S, C); negatives None (the other keys of the problem: M = S, the diagonal left out), (B, M, C) or (M, C)
    shared by all problems; log_weight, similarity_weight None or (B, S, M), usually expanded, any floating dtype.
    """

    q: Tensor
    k: Tensor
    negatives: Tensor | None
    log_weight: Tensor | None
    similarity_weight: Tensor | None

    @property
    def rows(self) -> int:
        return self.q.shape[0] * self.q.shape[1]

    @property
    def num_negatives(self) -> int:
        """M."""
        return (self.k if self.negatives is None else self.negatives).shape[-2]


def new_rows(layers: list[Layer]) -> tuple[Tensor, Tensor]:
    """Allocates the losses (R,) and statistics (3, R), float32, R = all rows of all layers in order."""
    rows = sum(layer.rows for layer in layers)
    like = layers[0].q
    return (
        torch.empty(rows, dtype=torch.float32, device=like.device),
        torch.empty((3, rows), dtype=torch.float32, device=like.device),
    )


def new_gradients(layer: Layer, needs: Needs) -> tuple[Tensor | None, ...]:
    """Allocates the gradients of q, k, negatives (their dtypes) and log_weight (float32, (B, S, M)), None where not
    needed. Zeros for a layer without rows, which reaches no kernel and yet has a gradient: that of shared negatives."""
    new = torch.empty if layer.rows else torch.zeros
    device = layer.q.device
    three = [
        new(t.shape, dtype=t.dtype, device=device) if n and t is not None else None for t, n in zip(layer[:3], needs)
    ]
    shape = (*layer.q.shape[:2], layer.num_negatives)
    return *three, new(shape, dtype=torch.float32, device=device) if needs.log_weight else None
