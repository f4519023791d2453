"""The part of `fuse` that knows MUNIT's layer norm: per sample, by the unbiased deviation, eps outside the root."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import nn

from kernels.fusing import recognised
from kernels.fusing.probe import identify, why_no_numbers
from kernels.fusing.recognised import Recognised, stock_forward
from kernels.norm.op import munit_layer_norm

Tensor = torch.Tensor


class _Layer(NamedTuple):
    channels: int
    gamma: str  # names of the parameters; empty where there is none
    beta: str


class FusedLayerNorm(Recognised):
    _fused_how: _Layer | None
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
        how = self._fused_how
        if how is None or not recognised.is_served(x, how.channels) or x.dim() != 4:
            return None
        parameters: list[Tensor | None] = []
        for name in (how.gamma, how.beta):
            p = getattr(self, name) if name else None
            if name and not (isinstance(p, Tensor) and p.shape == (how.channels,)):
                return None
            parameters.append(p)
        if not recognised.arithmetic_keeps_dtype(x, *parameters):
            return None
        gamma, beta = parameters
        return munit_layer_norm(
            x,
            gamma,
            beta,
            eps=self.eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            padding=padding,
            impl=self.impl,
        )


def looks_like(module: nn.Module) -> bool:
    """Nothing inside, no buffers, an eps, and for every channel one or two parameters, or none and `num_features`."""
    parameters = [p for p in module._parameters.values() if p is not None]
    return (
        type(module).__module__.partition(".")[0] != "torch"  # its norms are others, and it has many
        and not recognised.is_ours(module, FusedLayerNorm)
        and not any(m is not None for m in module._modules.values())
        and not any(b is not None for b in module._buffers.values())
        and hasattr(module, "eps")
        and len(parameters) <= 2
        and all(nn.parameter.is_lazy(p) or p.dim() == 1 for p in parameters)
        and (bool(parameters) or type(getattr(module, "num_features", None)) is int)
    )


def take(module: Any) -> str:
    """Puts the operator behind the forward of `module`, which looks like one; or says why not."""
    why = why_no_numbers(module) or recognised.why_not(module, FusedLayerNorm) or recognised.why_not_eps(module.eps)
    if why:
        return why
    names = [name for name, p in module._parameters.items() if p is not None]
    sizes = {module._parameters[name].shape[0] for name in names} or {module.num_features}
    if len(sizes) > 1:
        return "its parameters have different sizes"
    (channels,) = sizes
    eps, forward = module.eps, stock_forward(module)

    def candidate(how: _Layer):
        def run(x: Tensor, *parameters: Tensor) -> Tensor:
            by_name = dict(zip(names, parameters))
            return munit_layer_norm(x, by_name.get(how.gamma), by_name.get(how.beta), eps=eps)

        return run

    roles = set(itertools.permutations([*names, *[""] * (2 - len(names))]))
    how, why = identify(
        module,
        {how: candidate(how) for how in (_Layer(channels, *two) for two in sorted(roles))},
        channels=channels,
        dim=4,
        given=lambda noise, batch: [noise(channels) for _ in names],
        prepare=lambda x, *parameters: module._parameters.update(zip(names, parameters)),
        call=lambda x, *parameters: forward(x),
    )
    return why if how is None else recognised.become(module, FusedLayerNorm, how, tuple(names))


def name_of(module: nn.Module) -> str:
    """What computes it; empty if nothing here does."""
    return "munit_layer_norm" if recognised.is_taken(module, FusedLayerNorm) else ""


def give_back(module: nn.Module) -> None:
    recognised.give_back(module, FusedLayerNorm)
