"""A model whose every call runs under autocast, whatever its trainer knows of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from kernels.fusing.classes import Derived, derive, underive, why_not_derived

PRECISIONS = {None: None, "bfloat16": torch.bfloat16, torch.bfloat16: torch.bfloat16}


class InAutocast(Derived):
    """The forward under torch.autocast in bfloat16. What it returns in 16 bits is given in float32 to a caller who is
    outside of autocast himself, whose losses know nothing of it."""

    _fused_outermost = True

    def forward(self, *args, **kwargs):
        device = _device(self, (args, kwargs))
        outside = not torch.is_autocast_enabled(device)
        with torch.autocast(device, torch.bfloat16):
            out = super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue] (of the other base)
        return tree_map_only(torch.Tensor, _widened, out) if outside else out


def _widened(x: torch.Tensor) -> torch.Tensor:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return x
    y = x.float()
    if not torch.compiler.is_compiling():  # it knows no attributes of tensors
        vars(y).update(vars(x))  # by which rows say to a loss of how many images they are
    return y


def _device(module: Any, args: Any) -> str:
    for x in tree_leaves(args):
        if isinstance(x, torch.Tensor):
            return x.device.type
    for parameter in module.parameters():
        return parameter.device.type
    return "cpu"


def why_not(model: nn.Module, precision: torch.dtype | None) -> str:
    """Why calls of `model` cannot be put under autocast; else empty."""
    return "" if precision is None or isinstance(model, InAutocast) else why_not_derived(model, InAutocast)


def set_precision(model: nn.Module, precision: torch.dtype | None) -> None:
    """Puts every call of `model` under autocast, or no longer."""
    if precision is None:
        give_back(model)
    elif not isinstance(model, InAutocast):
        why = derive(model, InAutocast)
        if why:  # a metaclass or slots, which only trying shows
            raise ValueError(f"precision: got {precision} for a {type(model).__name__}: {why}; use torch.autocast")


def give_back(module: nn.Module) -> None:
    if isinstance(module, InAutocast):
        underive(module, InAutocast)
