"""kernels.fuse on small networks with the structures of packages people use: how they hold and run their layers."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from support.fuse_cases import check_same, fused_copy
from torch import nn


class TwiceRegistered(nn.Module):
    """Convolution, norm and activation as attributes, and all of them once more in a Sequential that runs."""

    def __init__(self, channels, dropout=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        layers = [self.conv]
        if dropout:
            self.dropout = nn.Dropout2d(dropout)
            layers.append(self.dropout)
        self.norm = nn.InstanceNorm2d(channels, affine=True)
        self.nonlin = nn.LeakyReLU(inplace=True)
        self.all_modules = nn.Sequential(*layers, self.norm, self.nonlin)

    def forward(self, x):
        return self.all_modules(x)


class Residual(nn.Module):
    """Runs its first part as a whole, and of the second the norm alone: the activation comes after the sum."""

    def __init__(self, channels):
        super().__init__()
        self.first = TwiceRegistered(channels)
        self.second = TwiceRegistered(channels)

    def forward(self, x):
        return self.second.nonlin(self.second.norm(self.second.conv(self.first(x))) + x)


class Ordered(nn.Sequential):
    """Norm, dropout and activation in an order given by letters, as children of those names."""

    def __init__(self, order, channels):
        super().__init__()
        for letter in order:
            layer = {"N": nn.InstanceNorm2d(channels), "D": nn.Dropout(0.0), "A": nn.ReLU()}[letter]
            self.add_module(letter, layer)


class Convolution(nn.Sequential):
    def __init__(self, channels, order):
        super().__init__()
        self.add_module("conv", nn.Conv2d(channels, channels, 3, padding=1))
        self.add_module("adn", Ordered(order, channels))


class Dense(nn.Sequential):
    """A Sequential whose forward calls the one of Sequential and adds the input's channels."""

    def __init__(self, channels):
        super().__init__(
            OrderedDict(norm=nn.InstanceNorm2d(channels), act=nn.ReLU(True), conv=nn.Conv2d(channels, 2, 3, padding=1))
        )

    def forward(self, x):
        return torch.cat([x, super().forward(x)], 1)


class Heads(nn.Module):
    """A decoder of named parts that it looks up, with heads in a list that no registry knows."""

    def __init__(self, channels):
        super().__init__()
        for i in range(2):
            self.add_module(f"up{i}", nn.Sequential(nn.InstanceNorm2d(channels), nn.LeakyReLU(0.1)))
        self.head = nn.Sequential(nn.InstanceNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 1, 1))
        self.heads = [self.head, lambda x: self.up0[0](x).mean(1, keepdim=True)]

    def forward(self, x):
        outputs = []
        for i in range(2):
            x = getattr(self, f"up{i}")(x)
            outputs += [head(x) for head in self.heads]
        return torch.cat(outputs, 1)


class Layered(nn.Module):
    """A feature extractor: runs a Sequential layer by layer, keeps the maps of some, and stops at the last of these."""

    def __init__(self, channels, wanted):
        super().__init__()
        self.features = nn.Sequential(
            nn.InstanceNorm2d(channels), nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)
        )
        self.wanted = wanted

    def forward(self, x):
        kept = []
        for name, layer in self.features._modules.items():
            x = layer(x)
            if name in self.wanted:
                kept.append(x.mean((2, 3)))
        return torch.cat(kept, 1)


class Modulated(nn.Module):
    """Scale and shift between norm and activation, which stand side by side in a Sequential all the same."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(nn.InstanceNorm2d(channels), nn.ReLU())
        self.gamma = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        norm, act = self.layers
        return act(norm(x) * (1 + self.gamma(x)))


class Dispatched(nn.Module):
    """Looks at its layers: takes norms one way and activations another."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.InstanceNorm2d(channels), nn.LeakyReLU(0.3), nn.InstanceNorm2d(channels), nn.ReLU()
        )

    def forward(self, x):
        for layer in self.layers:
            if isinstance(layer, nn.InstanceNorm2d):
                x = 0.5 * x + layer(x)
            elif isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
                x = F.leaky_relu(x, getattr(layer, "negative_slope", 0.0)) + 0.01 * layer(x)
        return x


class Siamese(nn.Module):
    """Two branches that share a Sequential, one of which goes on from its norm."""

    def __init__(self, channels):
        super().__init__()
        shared = nn.Sequential(nn.InstanceNorm2d(channels, affine=True), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(channels, channels, 1), shared)
        self.right = nn.Sequential(nn.Conv2d(channels, channels, 1), shared[0], nn.Tanh())

    def forward(self, x):
        return self.left(x) + self.right(x)


NETWORKS = {  # network, number of merged modules
    "twice registered": (lambda: nn.Sequential(TwiceRegistered(4), TwiceRegistered(4)), 2),
    "twice registered, residual": (lambda: Residual(4), 2),
    "ordered NDA": (lambda: nn.Sequential(Convolution(4, "NDA"), Convolution(4, "NA"), Convolution(4, "AN")), 1),
    "dense": (lambda: nn.Sequential(Dense(4), Dense(6)), 0),
    "heads": (lambda: Heads(4), 3),
    "layers kept before and behind": (lambda: Layered(4, ("0", "1", "3")), 2),
    "layers kept to the norm": (lambda: Layered(4, ("0",)), 2),
    "layers kept to the padding": (lambda: Layered(4, ("2",)), 2),
    "modulated": (lambda: Modulated(4), 1),
    "dispatched": (lambda: Dispatched(4), 2),
    "siamese": (lambda: Siamese(4), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs_and_gradients(name):
    torch.manual_seed(0)
    make, merged = NETWORKS[name]
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    fused = fused_copy(model)
    if name == "heads":  # the list of a copy holds functions of the original
        fused.heads = [fused.head, lambda x: fused.up0[0](x).mean(1, keepdim=True)]
    assert len(fused.fuse_report.merged) == merged
    if name.startswith("layers kept"):  # without an in-place activation every layer's map can be kept
        assert all(not m.inplace for m in fused.modules() if isinstance(m, nn.ReLU))
    check_same(fused, model, torch.randn(2, 4, 9, 8, dtype=torch.float64))
    if name == "dense":
        assert {why for _, why in fused.fuse_report.left} == {
            "activations and paddings not merged: this Sequential has a forward of its own"
        }
