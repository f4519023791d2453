"""The part of `fuse` that knows AdaIN with a projection of the style inside: StarGAN v2, imaginaire and their like."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import _has_any_global_hook

from kernels.fusing import recognised
from kernels.fusing.classes import untouched
from kernels.fusing.heads import follow
from kernels.fusing.probe import identify, why_no_numbers
from kernels.fusing.recognised import Recognised, stock_forward
from kernels.norm.module import INSTANCE_NORMS
from kernels.norm.op import adaptive_instance_norm

Tensor = torch.Tensor

_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, *INSTANCE_NORMS)


class _Projected(NamedTuple):
    channels: int
    dim: int  # of x
    norm: str  # the names of the children
    projections: tuple[str, ...]  # one for both halves, or one for each
    scale_last: bool  # whether the second half is the scale
    unit_offset: bool


class FusedProjectedNorm(Recognised):
    """The projections are called as modules, so their hooks and their weight norms live on; the norm is not called."""

    _fused_how: _Projected | None
    _fused_inputs = 2

    def _fused_run(
        self,
        x: Tensor,
        residual: Tensor | None,
        activation: str,
        negative_slope: float,
        padding: int,
        *more: Any,
    ) -> Tensor | None:
        how, (style,) = self._fused_how, more
        if (
            how is None
            or not recognised.is_served(x, how.channels)
            or x.dim() != how.dim
            or not isinstance(style, Tensor)
            or style.dim() != 2
            or style.shape[0] != x.shape[0]
            or not self._as_it_was_tried(how)
        ):
            return None
        norm: Any = self._modules[how.norm]
        outputs = [self._modules[name](style) for name in how.projections]
        scale, shift = outputs if len(outputs) == 2 else outputs[0].chunk(2, 1)
        if how.scale_last:
            scale, shift = shift, scale
        if not (
            scale.shape == shift.shape == x.shape[:2] and recognised.arithmetic_keeps_dtype(x, scale, shift)
        ):  # not by the forward of before, which would call the projections again
            y = _modulate(norm(x), scale, shift, how.unit_offset)
            return follow(y, residual, activation, negative_slope, padding)
        return adaptive_instance_norm(
            x,
            scale,
            shift,
            eps=norm.eps,
            unit_offset=how.unit_offset,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            padding=padding,
            impl=self.impl,
        )

    def _as_it_was_tried(self, how: _Projected) -> bool:
        children = self._modules
        norm = children.get(how.norm)
        return (
            norm is not None
            and _is_plain(norm)
            and untouched(norm)
            and len(children) == 1 + len(how.projections) + sum(m is None for m in children.values())
            and all(children.get(name) is not None for name in how.projections)
            and not _has_any_global_hook()
        )


def _modulate(z: Tensor, scale: Tensor, shift: Tensor, unit_offset: bool) -> Tensor:
    for _ in range(z.dim() - scale.dim()):
        scale, shift = scale.unsqueeze(-1), shift.unsqueeze(-1)
    return z * (1 + scale if unit_offset else scale) + shift


def _is_plain(norm: Any) -> bool:
    """An instance norm without parameters, statistics of its own or anything behind it."""
    return (
        type(norm) in _NORMS
        and norm.weight is None
        and norm.bias is None
        and norm.running_mean is None
        and norm.running_var is None
        and not norm.track_running_stats
        and getattr(norm, "activation", "none") == "none"
        and not getattr(norm, "padding", 0)
    )


def looks_like(module: nn.Module) -> bool:
    """A plain instance norm and one or two modules of matrices inside, nothing else; a forward of map and style."""
    children = [m for m in module._modules.values() if m is not None]
    norms = [m for m in children if isinstance(m, _InstanceNorm)]
    return (
        len(norms) == 1
        and 2 <= len(children) <= 3
        and not recognised.is_ours(module, FusedProjectedNorm)
        and not any(t is not None for t in (*module._parameters.values(), *module._buffers.values()))
        and _is_plain(norms[0])
        and all(_is_projection(m) for m in children if m is not norms[0])
        and _takes_a_style(module)
    )


def _is_projection(module: nn.Module) -> bool:
    """By its weights: matrices, and no filters."""
    dims = [2 if nn.parameter.is_lazy(p) else p.dim() for p in module.parameters()]
    return max(dims, default=0) == 2


def _takes_a_style(module: nn.Module) -> bool:
    try:
        parameters = inspect.signature(stock_forward(module)).parameters.values()
    except (TypeError, ValueError):  # a callable that does not say
        return False
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(by_position) >= 2 and [p.default is p.empty for p in by_position[:3]] in (
        [True] * 2,
        [True, True, False],
    )


def take(module: Any) -> str:
    """Puts the operator behind the forward of `module`, which looks like one; or says why not."""
    children = {name: m for name, m in module._modules.items() if m is not None}
    (name,) = (name for name, m in children.items() if isinstance(m, _InstanceNorm))
    norm: Any = children.pop(name)
    why = (
        why_no_numbers(module)
        or recognised.why_not(module, FusedProjectedNorm)
        or recognised.why_not_eps(norm.eps)
        or _why_not_children(norm, list(children.values()))
    )
    if why:
        return why
    channels, eps, forward, names = norm.num_features, norm.eps, stock_forward(module), tuple(children)
    dim = norm._get_no_batch_dim() + 1
    linear = (m for projection in children.values() for m in projection.modules() if isinstance(m, nn.Linear))
    width = next((m.in_features for m in linear), 2)  # which the forward may check
    called: list[str] = []

    def halves(style: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """What the projections give in the trial: no product of matrices, which a GPU may round to TF32."""
        return (style[:, :1] * weight[0] + style[:, 1:].sum(1, keepdim=True) * weight[1]).chunk(2, 1)

    def prepare(x: Tensor, style: Tensor, weight: Tensor) -> None:
        called.clear()
        for at, (name, projection) in enumerate(children.items()):
            part = at if len(children) == 2 else None
            vars(projection).update(_silent(), forward=_stand_in(called, name, halves, weight, part))

    def call(x: Tensor, style: Tensor, weight: Tensor) -> Any:
        y = forward(x, style)
        return y if sorted(called) == sorted(names) else None

    def candidate(how: _Projected):
        def run(x: Tensor, style: Tensor, weight: Tensor) -> Tensor:
            first, second = halves(style, weight)
            scale, shift = (second, first) if how.scale_last else (first, second)
            return adaptive_instance_norm(x, scale, shift, eps=eps, unit_offset=how.unit_offset)

        return run

    ways = [_Projected(channels, dim, name, names, last, offset) for last in (False, True) for offset in (True, False)]
    how, why = identify(
        module,
        {how: candidate(how) for how in ways},
        channels=channels,
        dim=dim,
        given=lambda noise, batch: (noise(batch, width), noise(2, 2 * channels)),
        prepare=prepare,
        call=call,
    )
    return why if how is None else recognised.become(module, FusedProjectedNorm, how)


def _why_not_children(norm: nn.Module, projections: list[nn.Module]) -> str:
    if not untouched(norm):
        return "a hook watches its norm, or the norm's forward was replaced on the object"
    if any(isinstance(m, torch.jit.ScriptModule) for m in projections):
        return "its projection is a ScriptModule"
    return "a global hook watches all modules" if _has_any_global_hook() else ""


def _silent() -> dict[str, Any]:
    """Attributes of a module that nobody watches: a trial is no call of it, and a weight norm has no business there."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {key: OrderedDict() for key in hooks} | {"_compiled_call_impl": None}


def _stand_in(called: list[str], name: str, halves: Any, weight: Tensor, part: int | None):
    def forward(style: Tensor) -> Tensor:
        called.append(name)
        both = halves(style, weight)
        return torch.cat(both, 1) if part is None else both[part]

    return forward


def name_of(module: Any) -> str:
    """What computes it; empty if nothing here does."""
    how = module._fused_how if recognised.is_taken(module, FusedProjectedNorm) else None
    if how is None or not module._as_it_was_tried(how):
        return ""
    return f"adaptive_instance_norm (projection {', '.join(how.projections)})"


def give_back(module: nn.Module) -> None:
    recognised.give_back(module, FusedProjectedNorm)
