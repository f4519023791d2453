"""What the heads have in common that were known by what they compute: how they begin, go on and end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from kernels._checks import FLOATING
from kernels._dtypes import in_autocast
from kernels._tools import NotScriptable
from kernels.fusing.classes import Derived, derive, underive
from kernels.fusing.heads import Head, follow

Tensor = torch.Tensor

# What can be assigned without a change of what the forward computes: ours, and what torch.nn, torch.compile, FSDP and
# DataParallel put there.
_HARMLESS = {
    *("training", "impl", "fuse_report", "_is_full_backward_hook", "_compiled_call_impl", "_is_torch_compile"),
    *("_is_fsdp_managed_module", "_fsdp_use_orig_params"),
    *("__dict__", "_parameters", "_buffers", "_modules", "_is_replica", "_former_parameters"),
}


def is_harmless(module: nn.Module | Derived, name: str) -> bool:
    """Whether this attribute may be assigned. Any may be at a replica, which DataParallel makes for one call, out of
    parts that it hands over one by one."""
    return name in _HARMLESS or "_is_replica" in module.__dict__


def stock_forward(module: nn.Module | Head) -> Callable[..., Any]:
    """The forward that its own class has."""
    base: Any = super(Head, module) if isinstance(module, Head) else module
    return base.forward


class Recognised(Head):
    """A head that computes by an operator as long as nobody has assigned an attribute since it was tried.

    `_fused_how`: what was found then; None afterwards. Parameters and buffers may be assigned: the operator takes
    whatever hangs there, and buffers were seen to have no part in it.
    """

    _fused_how: Any = None  # also of an object that the class itself has made
    _fused_free: tuple[str, ...] = ()  # further attributes that may be assigned: tensors that the operator takes
    _fused_inputs = 1  # how many arguments the forward takes by position

    def run(
        self,
        x: Tensor,
        residual: Tensor | None,
        activation: str,
        negative_slope: float,
        padding: int,
        *more: Any,
    ) -> Tensor:
        if self._fused_how is not None and len(more) + 1 == self._fused_inputs:
            y = self._fused_run(x, residual, activation, negative_slope, padding, *more)
            if y is not None:
                return y
        return follow(stock_forward(self)(x, *more), residual, activation, negative_slope, padding)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != self._fused_inputs:
            return stock_forward(self)(*args, **kwargs)
        return self.run(args[0], None, "none", 0.2, 0, *args[1:])

    def _fused_run(
        self,
        x: Tensor,
        residual: Tensor | None,
        activation: str,
        negative_slope: float,
        padding: int,
        *more: Any,
    ) -> Tensor | None:
        """`run` by the operator; None where it cannot take this input, before anything has happened."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        own = self.__dict__
        if is_harmless(self, name) or name in self._fused_free:
            return
        if name not in own.get("_parameters", ()) and name not in own.get("_buffers", ()):
            own["_fused_how"] = None


# ---- inputs ----------------------------------------------------------------------------------------------------------


def is_served(x: object, channels: int) -> bool:
    """Whether x is a floating map (N, `channels`, *spatial) with planes that have statistics."""
    return (
        isinstance(x, Tensor)
        and x.dtype in FLOATING
        and x.layout == torch.strided
        and x.dim() > 2
        and x.shape[1] == channels
        and x.shape[0] > 0
        and math.prod(x.shape[2:]) > 1
    )


def arithmetic_keeps_dtype(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the operator's result, in x's dtype, has the dtype of torch's arithmetic on x and these.

    Inside autocast a map stays in its dtype, as torch's own instance norm keeps it there: what arithmetic with float32
    parameters would widen, the next convolution would round again.
    """
    for p in parameters:
        if p is None:
            continue
        if p.dtype not in FLOATING or (p.dtype == torch.float64 and x.dtype != torch.float64):
            return False
        if p.dtype != x.dtype and not in_autocast(x.device.type) and torch.promote_types(p.dtype, x.dtype) != x.dtype:
            return False
    return True


def norm_keeps_dtype(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether batch and group norms of torch with these parameters can have a result in x's dtype, the only one they
    have (group norm inside autocast on CUDA aside, see `arithmetic_keeps_dtype`). They refuse float64 beside others."""
    return all(
        p is None or (p.dtype in FLOATING and (p.dtype == torch.float64) == (x.dtype == torch.float64))
        for p in parameters
    )


# ---- taking and giving back ------------------------------------------------------------------------------------------


def is_ours(module: nn.Module, behaviour: type[Head]) -> bool:
    """Whether its class is of this library, other than by `behaviour`."""
    return isinstance(module, NotScriptable) and not isinstance(module, behaviour)


def why_not(module: nn.Module, behaviour: type[Head]) -> str:
    """Empty if `behaviour` has for itself the attributes it needs."""
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    if not isinstance(module, behaviour):
        taken = [key for key in ("activation", "negative_slope", "padding", "impl", "run") if hasattr(module, key)]
        if taken:
            return f"it has an attribute `{taken[0]}` of its own"
    return ""


def why_not_eps(eps: object) -> str:
    if type(eps) not in (float, int) or not 0 <= eps < math.inf:  # pyright: ignore[reportOperatorIssue]
        return f"eps={eps!r}, want a finite float >= 0"
    return ""


def become(module: nn.Module, behaviour: type[Recognised], how: NamedTuple, free: tuple[str, ...] = ()) -> str:
    """Makes it such a head, of which the attributes `free` may be assigned; or says why not."""
    why = "" if isinstance(module, behaviour) else derive(module, behaviour)
    if not why:
        vars(module).update(_fused_how=how, _fused_free=free)
    return why


def is_taken(module: nn.Module, behaviour: type[Recognised]) -> bool:
    return isinstance(module, behaviour) and module._fused_how is not None and "forward" not in vars(module)


def give_back(module: nn.Module, behaviour: type[Derived]) -> None:
    """The class and the attributes it had before it became a `behaviour`, if it did."""
    if not isinstance(module, behaviour):
        return
    underive(module, behaviour)
    for key in ("_fused_how", "_fused_free", "impl"):
        vars(module).pop(key, None)
