"""Golden figures: what the published networks and losses returned for inputs that anyone can rebuild from names.

The rules: rs(name) = RandomState(crc32(name)); images uniform in [-1, 1], other tensors standard normal; parameters
standard normal times prod(shape[1:]) ** -0.5, one-dimensional ones times 0.1, of running variances the size of that
plus 1; `filt` and integers as the network builds them.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def rs(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def image(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rs(name).uniform(-1, 1, shape).astype(np.float32))


def normal(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rs(name).standard_normal(shape).astype(np.float32))


def fill(net: nn.Module) -> list[str]:
    """Give `net` the golden weights, and return its state-dict entries as "<key> <shape>"."""
    state = net.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point() and not key.endswith("filt"):
            shape = tuple(tensor.shape)
            values = rs(key).standard_normal(shape) * (math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1)
            if key.endswith("running_var"):
                values = np.abs(values) + 1
            state[key] = torch.from_numpy(values.astype(np.float32))
    net.load_state_dict(state)
    return [f"{key} {tuple(tensor.shape)}" for key, tensor in state.items()]


def fill_closed_form(net: nn.Module) -> nn.Module:
    """Weights without a random generator, in float64: parameter k, flat element i is v = sin(0.7 i + 1.3 k); 0.05 v
    where there are several dimensions, else 1 + 0.05 v for weights and 0.01 v for biases."""
    net = net.double()
    with torch.no_grad():
        for k, (name, parameter) in enumerate(net.named_parameters()):
            v = torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + 1.3 * k).view(parameter.shape)
            if parameter.dim() > 1:
                parameter.copy_(0.05 * v)
            else:
                parameter.copy_(1 + 0.05 * v if name.endswith("weight") else 0.01 * v)
    return net


def wave(shape: tuple[int, ...], phase: float = 0.5) -> Tensor:
    """sin(0.013 i + phase) over flat elements i, float64."""
    return torch.sin(0.013 * torch.arange(math.prod(shape), dtype=torch.float64) + phase).view(shape)


def summary(x: Tensor) -> list[float]:
    """[sum, sum of squares, first, middle and last flat element]: the columns of the closed-form table."""
    flat = x.detach().flatten()
    return [float(v) for v in (flat.sum(), flat.square().sum(), flat[0], flat[len(flat) // 2], flat[-1])]
