"""Moving averages of networks' weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from i2i import multi_tensor


class Average(AveragedModel):
    """The average of a network's weights, exponential, with `decay` per step; its buffers are the network's. Begins
    with the weights after the first step.

    In a state dict it is what torch's is. But torch counts and asks in the middle of what the device does whether it is
    the first time, and a CUDA graph would keep the answer.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__(network)
        self.decay = decay
        self.begun = False

    def load_state_dict(self, *given: Any, **options: Any) -> Any:
        found = super().load_state_dict(*given, **options)
        self.begun = int(self.n_averaged) > 0
        return found

    def follow(self, network: nn.Module) -> None:
        """On the device alone; `count` is the part of the host."""
        if self.begun:
            multi_tensor.lerp(self.module.parameters(), network.parameters(), 1 - self.decay)
        else:
            multi_tensor.copy(self.module.parameters(), network.parameters())
        multi_tensor.copy(self.module.buffers(), network.buffers())

    def update_parameters(self, model: nn.Module) -> None:
        self.follow(model)
        self.count()

    def count(self) -> None:
        """After each step."""
        self.n_averaged += 1
        self.begun = True
