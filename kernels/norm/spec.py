"""What the files of this room share: the operator's static options and new memory for its results."""

from __future__ import annotations

from typing import NamedTuple

import torch

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")

# Kinds of statistics: which elements share them, and what is divided by (munit_layer_norm has its own rule).
INSTANCE = 0  # a plane (n, c); sqrt(biased variance + eps)
INSTANCE_UNBIASED = 1  # a plane (n, c); sqrt(unbiased variance + eps)
LAYER_STD = 2  # a sample n; unbiased standard deviation + eps


class Spec(NamedTuple):
    """Static options of one call: y = act((offset + scale) * x_hat + shift) + residual, reflection-padded."""

    kind: int
    eps: float
    offset: float
    activation: int  # index into ACTIVATIONS
    slope: float
    padding: int


def new_output(x: torch.Tensor, padding: int, channels_last: bool) -> torch.Tensor:
    """Allocates y: dtype, device and memory order of x, each side longer by `padding`."""
    if not padding:
        return torch.empty_like(x)
    n, c, h, w = x.shape
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((n, c, h + 2 * padding, w + 2 * padding), dtype=x.dtype, device=x.device, memory_format=order)


def new_stats(x: torch.Tensor) -> torch.Tensor:
    """Allocates the statistics, float32 (4, N, C): mean, what float32 lost of it, biased variance, 1 / denominator."""
    return torch.empty((4, x.shape[0], x.shape[1]), dtype=torch.float32, device=x.device)


def centred(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(x - mean, mean) over `dims`, kept.

    The mean is taken off twice: the first difference is exact for x near the mean but carries the mean's rounding
    error, which at mean 1e4 and deviation 1e-2 in float32 is a tenth of a deviation.
    """
    mean = x.mean(dims, keepdim=True)
    d = x - mean
    rest = d.mean(dims, keepdim=True)
    return d - rest, mean + rest
