"""The part of `fuse` that knows the AdaIN of MUNIT and FUNIT: scale and shift are assigned from outside, flat, and a
batch norm of all planes side by side applies them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from kernels.fusing import recognised
from kernels.fusing.probe import identify, why_no_numbers
from kernels.fusing.recognised import Recognised, stock_forward
from kernels.norm.op import adaptive_instance_norm

Tensor = torch.Tensor


class _Assigned(NamedTuple):
    channels: int


class FusedAssignedNorm(Recognised):
    _fused_how: _Assigned | None
    weight: Tensor
    bias: Tensor
    eps: float

    def _fused_run(
        self,
        x: Tensor,
        residual: Tensor | None,
        activation: str,
        negative_slope: float,
        padding: int,
        *more: Any,
    ) -> Tensor | None:
        how, weight, bias = self._fused_how, self.weight, self.bias
        if how is None or not recognised.is_served(x, how.channels) or x.dim() != 4:
            return None
        planes = x.shape[0] * x.shape[1]
        for p in (weight, bias):
            if not isinstance(p, Tensor) or p.shape != (planes,) or not recognised.norm_keeps_dtype(x, p):
                return None
        return adaptive_instance_norm(
            x,
            weight.view(x.shape[:2]),
            bias.view(x.shape[:2]),
            eps=self.eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            padding=padding,
            impl=self.impl,
        )


def looks_like(module: nn.Module) -> bool:
    """Nothing inside and no parameters, but `weight` and `bias` among its plain attributes; an eps, and a number of
    channels."""
    attributes = vars(module)
    return (
        not recognised.is_ours(module, FusedAssignedNorm)
        and all(key in attributes and _is_flat(attributes[key]) for key in ("weight", "bias"))
        and not any(m is not None for m in module._modules.values())
        and not any(p is not None for p in module._parameters.values())
        and hasattr(module, "eps")
        and _channels(module) > 0
    )


def _is_flat(value: object) -> bool:
    return value is None or isinstance(value, Tensor) and value.dim() == 1


def _channels(module: Any) -> int:
    mean = module._buffers.get("running_mean")
    if isinstance(mean, Tensor):
        return 0 if nn.parameter.is_lazy(mean) or mean.dim() != 1 else mean.shape[0]
    channels = getattr(module, "num_features", 0)
    return channels if type(channels) is int else 0


def take(module: Any) -> str:
    """Puts the operator behind the forward of `module`, which looks like one; or says why not."""
    why = why_no_numbers(module) or recognised.why_not(module, FusedAssignedNorm) or recognised.why_not_eps(module.eps)
    if why:
        return why
    eps, forward, channels = module.eps, stock_forward(module), _channels(module)
    how, why = identify(
        module,
        {_Assigned(channels): lambda x, scale, shift: adaptive_instance_norm(x, scale, shift, eps=eps)},
        channels=channels,
        dim=4,
        given=lambda noise, batch: (noise(batch, channels), noise(batch, channels)),
        prepare=lambda x, scale, shift: vars(module).update(weight=scale.view(-1), bias=shift.view(-1)),
        call=lambda x, scale, shift: forward(x),
    )
    return why if how is None else recognised.become(module, FusedAssignedNorm, how, ("weight", "bias"))


def name_of(module: nn.Module) -> str:
    """What computes it; empty if nothing here does."""
    taken = recognised.is_taken(module, FusedAssignedNorm)
    return "adaptive_instance_norm (weight and bias from outside)" if taken else ""


def give_back(module: nn.Module) -> None:
    recognised.give_back(module, FusedAssignedNorm)
