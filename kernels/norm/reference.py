"""The norm family in plain torch: the oracle of the fused implementations, and what runs where they cannot.

Differentiable to any order; computes in float64 for float64 inputs and in float32 for everything narrower.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from kernels._dtypes import no_autocast, wide
from kernels._layout import dense, is_channels_last
from kernels.norm.spec import ACTIVATIONS, INSTANCE, LAYER_STD, Spec, centred


def root(x: torch.Tensor) -> torch.Tensor:
    """sqrt with derivative 0 at 0, where its own is infinite: times the 0 of a deviation, that is NaN."""
    zero = x == 0
    return x.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def plane_moments(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sqrt(unbiased variance + eps) of every plane of x (N, C, *spatial), each (N, C)."""
    dims = tuple(range(2, x.dim()))
    n = math.prod(x.shape[2:])
    with no_autocast(x.device.type):
        d, mean = centred(wide(x), dims)
        return mean.flatten(1), root(d.square().sum(dims) / (n - 1) + eps)


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
        # torch mirrors no maps without channels
        y = F.pad(y, (spec.padding,) * 4, mode="reflect" if y.numel() else "constant")
    return dense(y, is_channels_last(like))


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
    with no_autocast(x.device.type):
        return epilogue(affine(_normalise(x, spec), scale, shift, spec.offset), x, residual, spec)


def _normalise(x: torch.Tensor, spec: Spec) -> torch.Tensor:
    """x_hat. Where the denominator is 0, in a constant group without eps, it is 0 and has gradient 0, as in torch."""
    dims = tuple(range(1 if spec.kind == LAYER_STD else 2, x.dim()))
    n = math.prod([x.shape[d] for d in dims])
    d, _ = centred(wide(x), dims)
    var = d.square().sum(dims, keepdim=True) / (n if spec.kind == INSTANCE else n - 1)
    denominator = root(var) + spec.eps if spec.kind == LAYER_STD else root(var + spec.eps)
    zero = denominator == 0
    # a variance beyond the dtype's range must show: times 1 / inf it would be a plane of zeros
    rstd = denominator.masked_fill(zero, 1.0).reciprocal().masked_fill(denominator == math.inf, math.nan)
    return d * rstd.masked_fill(zero, 0.0)


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
    with no_autocast(x.device.type):
        z = wide(x)
        z = (z - mean.to(z.dtype).reshape(shape)) * torch.rsqrt(var.to(z.dtype) + spec.eps).reshape(shape)
        return epilogue(affine(z, scale, shift, spec.offset), x, residual, spec)
