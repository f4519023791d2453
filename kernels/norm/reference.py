"""The norm family in plain torch: the oracle of the fused implementations, and what runs where they cannot.

Differentiable to any order; computes in float64 for float64 inputs and in float32 for everything narrower.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from kernels._layout import is_channels_last
from kernels.norm.spec import ACTIVATIONS, INSTANCE, LAYER_STD, Spec


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype statistics are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def centred(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(x - mean, mean) over `dims`, kept.

    The mean is taken off twice: the first difference is exact for x near the mean but carries the mean's rounding
    error, which at mean 1e4 and deviation 1e-2 in float32 is a tenth of a deviation.
    """
    mean = x.mean(dims, keepdim=True)
    d = x - mean
    rest = d.mean(dims, keepdim=True)
    return d - rest, mean + rest


def plane_moments(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sqrt(unbiased variance + eps) of every plane of x (N, C, *spatial), each (N, C)."""
    dims = tuple(range(2, x.dim()))
    n = math.prod(x.shape[2:])
    d, mean = centred(wide(x), dims)
    std = (d.square().sum(dims) / (n - 1) + eps).sqrt()
    return mean.flatten(1), std


def activate(x: torch.Tensor, activation: int, slope: float) -> torch.Tensor:
    name = ACTIVATIONS[activation]
    if name == "relu":
        return F.relu(x)
    if name == "leaky_relu":
        return F.leaky_relu(x, slope)
    return torch.tanh(x) if name == "tanh" else x


def epilogue(z: torch.Tensor, like: torch.Tensor, residual: torch.Tensor | None, spec: Spec) -> torch.Tensor:
    """act(z) + residual, reflection-padded, in the dtype and memory order of `like`."""
    y = activate(z, spec.activation, spec.slope)
    if residual is not None:
        y = y + residual
    y = y.to(like.dtype)
    if spec.padding:
        # outside autocast, which would run (and return) the padding in float32
        with torch.autocast(y.device.type, enabled=False):
            y = F.pad(y, (spec.padding,) * 4, mode="reflect")
    if like.dim() == 4 and is_channels_last(like):
        y = y.contiguous(memory_format=torch.channels_last)
    return y


def affine(z: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, offset: float) -> torch.Tensor:
    """(offset + scale) * z + shift with scale, shift of shape (C,) or (N, C)."""

    def over_planes(p: torch.Tensor) -> torch.Tensor:
        return p.to(z.dtype).reshape(*(p.shape if p.dim() == 2 else (1, *p.shape)), *(1,) * (z.dim() - 2))

    if scale is not None:
        z = z * (over_planes(scale) + offset if offset else over_planes(scale))
    return z if shift is None else z + over_planes(shift)


def norm(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    spec: Spec,
) -> torch.Tensor:
    """The whole family; arguments as in `kernels.norm.op`."""
    dims = tuple(range(1 if spec.form == LAYER_STD else 2, x.dim()))
    n = math.prod([x.shape[d] for d in dims])
    d, _ = centred(wide(x), dims)
    squares = d.square().sum(dims, keepdim=True)
    if spec.form == LAYER_STD:
        # the root has no derivative at a constant sample: 0 there (as torch masks it in std), not inf * 0
        var = squares / (n - 1)
        zero = var == 0
        x_hat = d / (torch.where(zero, 1.0, var).sqrt().masked_fill(zero, 0.0) + spec.eps)
    else:
        x_hat = d * torch.rsqrt(squares / (n if spec.form == INSTANCE else n - 1) + spec.eps)
    return epilogue(affine(x_hat, scale, shift, spec.offset), x, residual, spec)


def normalise_with(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    spec: Spec,
) -> torch.Tensor:
    """Normalisation by given statistics of shape (C,): instance norm in eval mode with running statistics."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    z = wide(x)
    z = (z - mean.to(z.dtype).reshape(shape)) * torch.rsqrt(var.to(z.dtype) + spec.eps).reshape(shape)
    return epilogue(affine(z, scale, shift, spec.offset), x, residual, spec)
