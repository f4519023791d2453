"""Weights in 16 bits: what autocast's own casts give, to the bit, with fewer of them."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn

from i2i.methods.half_weights import HalfWeights, add_gradients


class Network(nn.Module):
    """Layers that are cast, one that is not, and one whose weight has no part in some passes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor, whole: bool = True) -> Tensor:
        x = self.norm(self.first(x).relu())
        return self.last(self.up(x).mean((2, 3))) if whole else x


def build() -> tuple[Network, HalfWeights]:
    torch.manual_seed(0)
    net = Network().to(memory_format=torch.channels_last)
    return net, HalfWeights(net, torch.bfloat16)


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def step(net: Network, region, seed: int) -> list[Tensor]:
    """Two passes in one region, one backward; a third pass in another, of a part of the network."""
    for parameter in net.parameters():
        parameter.grad = None
    with region():
        loss = net(images(seed)).square().mean() + net(images(seed + 1)).mean()
    loss.backward()
    with region():
        more = net(images(seed + 2), whole=False).square().mean()
    more.backward()
    return [loss.detach(), more.detach(), *(p.grad.clone() for p in net.parameters())]


def test_losses_gradients_and_updates_are_those_of_autocast():
    (ours, half), (stock, _) = build(), build()

    def region():
        stack = contextlib.ExitStack()
        stack.enter_context(autocast())
        half.check()
        stack.enter_context(half.used())
        return stack

    optimizers = [torch.optim.Adam(net.parameters(), lr=0.1, fused=True) for net in (ours, stock)]
    for seed in range(3):
        found, wanted = step(ours, region, seed), step(stock, autocast, seed)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        for optimizer in optimizers:
            optimizer.step()
        half.renew()
    for a, b in zip(ours.parameters(), stock.parameters(), strict=True):
        assert torch.equal(a, b) and a.grad.dtype == torch.float32 and a.grad.stride() == a.stride()


def test_layers_see_the_copies_inside_and_the_weights_outside():
    net, half = build()
    half.check()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with half.used():
        assert net.first.weight.dtype == net.up.weight.dtype == net.last.bias.dtype == torch.bfloat16
        assert net.norm.weight.dtype == torch.float32
        with half.unused():
            assert net.first.weight.dtype == torch.float32
        assert net.first.weight.dtype == torch.bfloat16
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    with pytest.raises(ZeroDivisionError), half.used():
        1 / 0  # noqa: B018
    assert isinstance(net.first.weight, nn.Parameter)
    copy.deepcopy(net)


@pytest.mark.parametrize("write", ["load_state_dict", "in place", "data"])
def test_weights_that_somebody_writes_are_copied_again(write):
    net, half = build()
    half.check()
    other = {key: value + 1 for key, value in net.state_dict().items() if value.is_floating_point()}
    if write == "load_state_dict":
        net.load_state_dict(other, strict=False)
    elif write == "in place":
        with torch.no_grad():
            net.first.weight.add_(1)
    else:
        net.first.weight.data = other["first.weight"]
    half.check()
    with half.used():
        assert torch.equal(net.first.weight, other["first.weight"].bfloat16())


def test_a_backward_pass_after_the_update_is_refused():
    """Its weights would be those of after the update: with copies made anew each time, it could not happen."""
    net, half = build()
    half.check()
    with autocast(), half.used():
        loss = net(images().requires_grad_()).mean()
    half.renew()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_recorded_for_weights_that_need_no_gradient():
    net, half = build()
    half.check()
    net.requires_grad_(False)
    with autocast(), half.used():
        x = images().requires_grad_()
        net(x).mean().backward()
    assert x.grad is not None and all(p.grad is None for p in net.parameters())
    net.requires_grad_(True)
    with torch.no_grad(), half.used():
        assert not net.first.weight.requires_grad


def test_gradients_add_up_in_float32():
    """256 times 1 + 2^-7: in 16 bits each sum would be rounded."""
    weight = nn.Parameter(torch.zeros(3))
    for _ in range(256):
        add_gradients([(weight, torch.full((3,), 1 + 2**-7, dtype=torch.bfloat16))])
    assert torch.equal(weight.grad, torch.full((3,), 256 * (1 + 2**-7)))
    add_gradients([])
