"""What the modules of this library answer to the tools of torch that take a model apart."""

from __future__ import annotations

from typing import Any

import torch


def as_leaf(module: torch.nn.Module, x: object, *more: object) -> torch.fx.Proxy | None:
    """torch.fx traces with proxies: `module` becomes one node of its graph. None if `x` is no proxy."""
    if not isinstance(x, torch.fx.Proxy):
        return None
    tracer: Any = x.tracer  # a torch.fx.Tracer, which the stubs do not say
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x, *more), {})


class NotScriptable:
    """Mixed into nn.Module subclasses whose code TorchScript cannot compile: torch.jit.script says how to go on."""

    def __prepare_scriptable__(self) -> torch.nn.Module:
        raise TypeError(
            f"torch.jit.script: got a model with {type(self).__name__} of kernels, want the model as it was before "
            "kernels.fuse (its state dict is the same), or take torch.jit.trace"
        )
