"""The part of `fuse` that knows instance norms: torch's own to that of this library."""

from __future__ import annotations

import math
from typing import cast

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from kernels.norm.module import InstanceNorm2d


def why_not_norm(norm: nn.InstanceNorm2d) -> str:
    """Empty if `become_norm` can take it."""
    if "forward" in vars(norm):
        return "its forward was replaced on the object"
    if type(norm.eps) not in (float, int) or not 0 <= norm.eps < math.inf:
        return f"eps={norm.eps!r}, want a finite float >= 0"
    taken = [key for key in ("activation", "negative_slope", "padding", "impl") if hasattr(norm, key)]
    return f"it has an attribute `{taken[0]}` of its own" if taken else ""


def become_norm(norm: nn.InstanceNorm2d) -> None:
    # The class changes and the object stays: whoever holds the module, its parameters or its hooks still does.
    norm.__class__ = InstanceNorm2d
    cast(InstanceNorm2d, norm).set_epilogue("none", 0.2, 0, "auto")


def why_left(norm: nn.Module) -> str:
    """Of an instance norm that is not torch.nn.InstanceNorm2d itself."""
    if isinstance(norm, (nn.InstanceNorm1d, nn.InstanceNorm3d)):
        return f"{type(norm).__name__}: only InstanceNorm2d has a fused module"
    if isinstance(norm, LazyModuleMixin):
        return f"{type(norm).__name__}: not initialised yet; run the model once, then fuse"
    return f"{type(norm).__name__} is a subclass of InstanceNorm2d and may compute something else"
