"""Methods whose steps are not all alike: now one network is updated, now another."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from i2i.config import Config
from i2i.graphs import Losses
from i2i.methods.base import Method


class Alternating(Method):
    """Counts its steps in `iteration`, and gives every step a full row of losses: those that it does not compute are of
    the last step that did."""

    losses: ClassVar[tuple[str, ...]]  # names, in the order of the table

    def __init__(self, config: Config, device: torch.device | str = "cpu", impl: str = "auto"):
        super().__init__(config, device, impl)
        self.iteration = 0
        self.shown = {name: torch.zeros((), device=self.device) for name in self.losses}

    def step(self, *batch: Tensor) -> Losses:
        losses = super().step(*batch)
        self.iteration += 1
        self.shown |= losses
        return dict(self.shown)

    def extra_state(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "shown": {name: float(loss) for name, loss in self.shown.items()}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.shown = {name: torch.tensor(value, device=self.device) for name, value in state["shown"].items()}
