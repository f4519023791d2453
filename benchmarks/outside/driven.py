"""A trainer of others, as the tables drive it: its networks, its own step, and the same step in float64."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Losses = dict[str, Tensor]


class Setting(NamedTuple):
    """What a trainer is built for. size: of the pictures, in pixels (of 3-D patches in voxels), along each side."""

    checkout: str  # its folder; empty for a package
    size: int
    batch: int
    device: torch.device


class Driven:
    """networks: by name, those that are trained. take: their trainer's own step on a batch; it returns losses by name.
    batch: float32, on the device. others: modules that are not trained but have buffers, such as losses. called: the
    modules whose forward the trainer calls, if those are not the networks but their parts.

    Every step begins with seeds of its own, so that contestants make the same draws.
    """

    def __init__(
        self,
        device: torch.device,
        networks: dict[str, nn.Module],
        take: Callable[..., Losses],
        batch: Sequence[Tensor],
        others: Sequence[nn.Module] = (),
        called: Sequence[nn.Module] = (),
    ):
        self.device, self.networks, self.take, self.batch, self.others = device, networks, take, list(batch), others
        self.called = called or list(networks.values())
        self.trainer: Any = None  # of theirs, where a line changes more than networks
        self.count = 0
        self.autocast = self.float64 = False

    def step(self, *batch: Tensor) -> Losses:
        seed(self.count)
        self.count += 1
        with contextlib.ExitStack() as held:
            if self.float64:
                held.enter_context(float64_by_default())
            if self.autocast:
                held.enter_context(forward_under_autocast(self.device))
            return self.take(*batch)

    def double(self) -> None:
        """From now on all of it is float64, the draws those of float32. Before the first step."""
        self.float64 = True
        for module in (*self.networks.values(), *self.others):
            module.double()
        self.batch = [tensor.double() if tensor.is_floating_point() else tensor for tensor in self.batch]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """A copy of every network's state dict."""
        return {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in self.networks.items()}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        for name, net in self.networks.items():
            net.load_state_dict(state[name])

    def gradients(self) -> dict[str, Tensor]:
        """A vector for each network, on the CPU."""
        found = {}
        for name, net in self.networks.items():
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
            found[name] = torch.cat([g.detach().cpu().flatten() for g in grads])
        return found


def seed(number: int) -> None:
    """Of all that the trainers draw from."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def pictures(count: int, batch: int, size: int, device: torch.device, dimensions: int = 2) -> list[Tensor]:
    """`count` batches of three channels: noise between -1 and 1, always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, *[size] * dimensions)
    return [(torch.rand(shape, generator=generator) * 2 - 1).to(device) for _ in range(count)]


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    """New tensors are float64; what torch.rand and torch.randn draw is what they would draw in float32. (Dropout, which
    none of the networks here has, draws otherwise in float64.)"""

    def widened(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *size, **options: draw(*size, **{"dtype": torch.float32} | options).double()

    rand, randn, before = torch.rand, torch.randn, torch.get_default_dtype()
    torch.rand, torch.randn = widened(rand), widened(randn)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.rand, torch.randn = rand, randn
        torch.set_default_dtype(before)


@contextlib.contextmanager
def forward_under_autocast(device: torch.device) -> Iterator[None]:
    """bfloat16 autocast around all of a step but its backward passes.

    That is what a user writes who puts `with torch.autocast(...)` around every forward part of a step. Weights that
    were cast are forgotten at each backward pass, as they are at the end of each such block: an update follows.
    """
    backward = torch.Tensor.backward

    def outside(self: Tensor, *args: Any, **options: Any) -> None:
        torch.clear_autocast_cache()
        with torch.autocast(device.type, enabled=False):
            backward(self, *args, **options)

    torch.Tensor.backward = outside  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        torch.Tensor.backward = backward
