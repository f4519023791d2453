"""Negatives from past images: a moving average of encoder and projection, and what it saw of the last images (MoCo)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from i2i import distributed
from i2i.methods.averages import Average

MOMENTUM = 0.999


class Queue:
    """The newest `size` rows of every layer, oldest overwritten first. Begins full of random rows, as MoCo's does."""

    def __init__(self, layers: int, size: int, width: int, generator: torch.Generator, device: torch.device):
        self.rows = torch.randn(layers, size, width, generator=generator).to(device)
        self.place = 0  # of the oldest row

    def claim(self, rows: int) -> Tensor:
        """The places, on the CPU, of the rows that are pushed next; of more than fit, those of the last ones."""
        size = self.rows.shape[1]
        places = (self.place + torch.arange(rows)) % size
        self.place = (self.place + rows) % size
        return places[-size:]  # no place twice: which row would stay there is not defined

    def push(self, rows: Sequence[Tensor], places: Tensor) -> None:
        """(M, width) of every layer, to the places that `claim` gave for M rows."""
        for held, added in zip(self.rows, rows, strict=True):
            held[places] = added[-len(places) :]


def gathered(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(B, P, width) of every layer -> (M, width), those of all processes: their queues stay equal."""
    return distributed.gather_rows(torch.stack([layer.flatten(0, 1).float() for layer in rows], dim=1)).unbind(1)


class ExternalNegatives:
    """Where CUT's "external" contrast gets keys and negatives from.

    The CUT paper (arXiv 2007.15651) compares such negatives in its ablation; they were never released. From there: a
    queue of patches of the data set, encoded by a moving average of encoder and MLP, as in MoCo (arXiv 1911.05722).
    From MoCo: momentum 0.999; the positive, too, is encoded by the averages, at the source's own place; an image's keys
    enter the queue after its loss. Decided here: 16,384 rows a layer (16 MiB of a width of 256); sources of NCE and
    NCE_Y have a queue each, because where one domain's patches are the only positives, those of the other are told
    apart by their domain.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projection: nn.Module,
        sources: int,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        device: torch.device,
    ):
        """`shape` of every queue: layers, rows, width."""
        self.averages = [Average(net, MOMENTUM) for net in (encoder, projection)]
        self.encoder: Any
        self.projection: Any
        self.encoder, self.projection = (average.module for average in self.averages)
        self.queues = [Queue(*shape, generator, device) for _ in range(sources)]

    def follow(self, encoder: nn.Module, projection: nn.Module) -> None:
        for average, net in zip(self.averages, (encoder, projection), strict=True):
            average.follow(net)

    def state(self) -> dict[str, Any]:
        return {
            "averages": [average.state_dict() for average in self.averages],
            "queues": [{"rows": queue.rows, "place": queue.place} for queue in self.queues],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(saved)
        for queue, saved in zip(self.queues, state["queues"], strict=True):
            queue.rows.copy_(saved["rows"])
            queue.place = saved["place"]
