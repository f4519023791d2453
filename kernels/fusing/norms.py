"""The part of `fuse` that knows torch's instance norms, of one to three dimensions."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from kernels.fusing.classes import root_class
from kernels.norm.module import INSTANCE_NORMS, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d

_FUSED = {
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
}
_OURS = ("activation", "negative_slope", "padding", "impl", "_fused")


def looks_like(module: nn.Module) -> bool:
    return isinstance(module, _InstanceNorm) and root_class(module) not in INSTANCE_NORMS


def take(norm: Any) -> str:
    if type(norm) not in _FUSED:
        if isinstance(norm, LazyModuleMixin):
            return "not initialised yet; run the model once, then fuse"
        of = next((cls.__name__ for cls in type(norm).__mro__ if cls in _FUSED), "torch's instance norm")
        return f"a subclass of {of}, which may compute something else"
    if "forward" in vars(norm):
        return "its forward was replaced on the object"
    if type(norm.eps) not in (float, int) or not 0 <= norm.eps < math.inf:
        return f"eps={norm.eps!r}, want a finite float >= 0"
    taken = [key for key in _OURS if hasattr(norm, key)]
    if taken:
        return f"it has an attribute `{taken[0]}` of its own"
    # The class changes and the object stays: whoever holds the module, its parameters or its hooks still does.
    norm.__class__ = _FUSED[type(norm)]
    norm.set_epilogue("none", 0.2, 0, "auto")
    norm._fused = True
    return ""


def name_of(module: nn.Module) -> str:
    """Empty for one that its author has put there, too."""
    return type(module).__name__ if root_class(module) in INSTANCE_NORMS and "_fused" in vars(module) else ""


def give_back(module: nn.Module) -> None:
    if not name_of(module):
        return
    module.__class__ = next(stock for stock, fused in _FUSED.items() if fused is type(module))
    for key in _OURS:
        delattr(module, key)
