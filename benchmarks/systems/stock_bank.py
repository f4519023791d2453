"""A bank of negatives in stock torch: CUT's "external" contrast, in the form in which MoCo published it.

CUT's repository has none, so this is what a user of it would take over from MoCo (He et al., CVPR 2020): an encoder and
a projection whose weights follow by a moving average, a queue of their unit rows, and one cross entropy of the positive
beside the products with the whole queue.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.systems.stock_layers import Style
from i2i.methods.negatives import MOMENTUM, ExternalNegatives


class StockBank:
    """The queues of `ours`, with unit rows: MoCo keeps those, ours divides by the norm in its loss. `careful`: the
    average of all weights in one call."""

    def __init__(self, ours: ExternalNegatives, encoder: nn.Module, projection: nn.Module, style: Style):
        self.style, self.queues = style, ours.queues
        for queue in self.queues:
            queue.rows = F.normalize(queue.rows, dim=-1).to(next(encoder.parameters()).device)
        self.followed = list(encoder.parameters()) + list(projection.parameters())
        self.encoder, self.projection = (copy.deepcopy(net).requires_grad_(False) for net in (encoder, projection))
        self.weights = list(self.encoder.parameters()) + list(self.projection.parameters())
        self.pushed: list[list[Tensor]] = []

    @torch.no_grad()
    def follow(self) -> None:
        """First in a step. Equal weights stay equal, so that it does nothing in the first."""
        if self.style.careful:
            torch._foreach_lerp_(self.weights, self.followed, 1 - MOMENTUM)
            return
        for average, weight in zip(self.weights, self.followed):
            average.copy_(average * MOMENTUM + weight * (1 - MOMENTUM))

    def losses(self, source: int, queries: Sequence[Tensor], keys: Sequence[Tensor], divisor: float) -> list[Tensor]:
        """The mean over the rows (B * P, width) of every layer; `divisor`: the temperature. The keys wait for
        `push`."""
        bank = self.queues[source].rows
        self.pushed.append([rows.to(bank.dtype) for rows in keys])
        return [bank_loss(q, k, rows, divisor) for q, k, rows in zip(queries, keys, bank, strict=True)]

    @torch.no_grad()
    def push(self) -> None:
        """Last in a step: the backward pass reads the queues."""
        for queue, rows in zip(self.queues, self.pushed, strict=True):
            queue.push(rows, queue.claim(len(rows[0])))
        self.pushed.clear()


def bank_loss(q: Tensor, k: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """MoCo's: logits of the positive beside those of the bank's rows, target 0."""
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ bank.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))
