"""The weights of a model's convolutions in channels-last order, which makes their results channels-last."""

from __future__ import annotations

import types
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from kernels._layout import preferred_memory_format
from kernels.fusing.heads import Head
from kernels.norm.module import INSTANCE_NORMS

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_FUNCTIONS = ("instance_norm", "group_norm")
_KEY = "_fused_contiguous"  # names of the parameters that were contiguous, on each module that holds them


def why_wrong(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> str:
    """Why channels-last maps would be wrong in `model`: torch's own norms on a CPU. `modules`: those of it that run,
    without what lies inside one that is computed as a whole."""
    for name, module in modules:
        stock = isinstance(module, (_InstanceNorm, nn.GroupNorm)) and not isinstance(module, (*INSTANCE_NORMS, Head))
        calls = not isinstance(module, Head) and any(key in _FUNCTIONS for key in _names(type(module)))
        if (stock or calls) and on_cpu(model):
            return (
                f"{name or 'the model itself'} runs torch's own {type(module).__name__ if stock else 'norm'}, which on "
                "a CPU computes wrong numbers or gradients for some channels-last maps"
            )
    return ""


def _names(cls: type[nn.Module]) -> tuple[str, ...]:
    """What the forward of a class that is not torch's calls by name."""
    if cls.__module__.startswith(("torch.", "kernels.")) or not isinstance(cls.forward, types.FunctionType):
        return ()
    return cls.forward.__code__.co_names


def why_slower(model: nn.Module, dtype: torch.dtype | None) -> str:
    """Why convolutions in that order cost more than they save. `dtype`: of calls under autocast."""
    if on_cpu(model) and preferred_memory_format("cpu", dtype or torch.float32) == torch.contiguous_format:
        return "this processor has no AVX-512, and torch's convolutions are slower in channels-last order without it"
    return ""


def on_cpu(model: nn.Module) -> bool:
    return any(p.device.type == "cpu" for p in model.parameters())


def to_channels_last(model: nn.Module) -> int:
    """Gives the weights of all convolutions of two and three dimensions that order, and returns how many have it. Their
    values, and the parameter objects, stay the ones they are."""
    count = 0
    for module in model.modules():
        if not isinstance(module, _ConvNd):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() not in _FORMATS or nn.parameter.is_lazy(parameter):
                continue
            if parameter.is_contiguous() and not parameter.is_contiguous(memory_format=_FORMATS[parameter.dim()]):
                parameter.data = parameter.data.contiguous(memory_format=_FORMATS[parameter.dim()])
                vars(module).setdefault(_KEY, set()).add(key)
            count += 1
    return count


def give_back(module: nn.Module) -> None:
    for key in vars(module).pop(_KEY, ()):
        parameter = getattr(module, key, None)
        if isinstance(parameter, nn.Parameter):
            parameter.data = parameter.data.contiguous()
