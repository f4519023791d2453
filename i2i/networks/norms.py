"""Normalisation by its published name, with what follows it: one module whatever the norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from i2i.errors import UsageError

NORMS = ("instance", "batch", "none")


def norm_layer(
    norm: str, channels: int, *, activation: str = "none", padding: int = 0, impl: str = "auto"
) -> nn.Module:
    """Module `(x, residual=None) -> pad(activation(norm(x)) + residual)` on (N, channels, H, W).

    norm: "instance", without parameters; "batch", torch's own with its keys; "none". activation: "none", "relu" or
    "leaky_relu" (slope 0.2). padding: pixels of reflection on each side. UsageError for another norm.
    """
    if norm == "instance":
        return kernels.InstanceNorm2d(channels, activation=activation, padding=padding, impl=impl)
    if norm == "batch":
        return BatchNorm2d(channels, activation, padding, impl)
    if norm == "none":
        return NoNorm(activation, padding, impl)
    raise UsageError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


class Conv2dBeforeNorm(nn.Conv2d):
    """A convolution in front of an instance norm, which takes any bias off again: the bias is kept for the published
    files and never added, so it costs no pass over the maps, forward or backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, None)


def conv_before(norm: str, inner: int, outer: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """The convolution that `norm_layer(norm, outer)` follows directly, with the published keys: a bias with instance
    norm only. Not where anybody looks at the map in between, as CUT's contrastive loss does."""
    if norm == "instance":
        return Conv2dBeforeNorm(inner, outer, kernel, stride, padding)
    return nn.Conv2d(inner, outer, kernel, stride, padding, bias=False)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's own, then activation, residual and padding."""

    def __init__(self, channels: int, activation: str, padding: int, impl: str):
        super().__init__(channels)
        self.epilogue = (activation, padding, impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _finish(super().forward(x), residual, *self.epilogue)


class NoNorm(nn.Module):
    """Activation, residual and padding alone."""

    def __init__(self, activation: str, padding: int, impl: str):
        super().__init__()
        self.epilogue = (activation, padding, impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _finish(x, residual, *self.epilogue)


def _finish(x: Tensor, residual: Tensor | None, activation: str, padding: int, impl: str) -> Tensor:
    if activation == "relu":
        x = F.relu(x)
    elif activation == "leaky_relu":
        x = F.leaky_relu(x, 0.2)
    if residual is not None:
        x = x + residual
    return kernels.reflection_pad2d(x, padding, impl=impl)
