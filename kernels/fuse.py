"""Drop-in replacement inside models that nobody here wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn

from kernels import backends
from kernels.norm.module import InstanceNorm2d

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass
class FuseReport:
    """What `fuse` did: (module name, text) pairs. `str(report)` is the readable form."""

    replaced: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    implementation: str = ""

    def __str__(self) -> str:
        lines = [f"kernels.fuse: {len(self.replaced)} replaced, {len(self.left)} left; {self.implementation}"]
        lines += [f"  {name or '(the model itself)'}: {what}" for name, what in self.replaced]
        lines += [f"  {name or '(the model itself)'}: left, {why}" for name, why in self.left]
        return "\n".join(lines)


def fuse(model: nn.Module) -> nn.Module:
    """Turns every torch.nn.InstanceNorm2d of `model` into `kernels.InstanceNorm2d`, in place, and returns the model.

    A norm followed directly by ReLU or LeakyReLU in a Sequential takes the activation over; an Identity keeps the
    activation's index. Parameters, buffers, state-dict keys, hooks and module objects stay the ones they were, so
    optimisers and references remain valid; results are the same. What a reader might miss: code that collects the map
    between a norm and its merged activation by Sequential index sees the activated map (as it already does with an
    in-place ReLU).

    Args:
        model: any module; train or eval mode, before or after loading weights, before torch.compile.

    Returns:
        `model`, with a `FuseReport` as its attribute `fuse_report`.

    Raises:
        TypeError: `model` is no nn.Module, or a ScriptModule, whose code cannot be changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model: got a ScriptModule, want the module it was made from: compiled code cannot be changed")
    report = FuseReport(implementation=_implementation(model))
    uses = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    norms = {}
    for name, module in model.named_modules():
        if type(module) is nn.InstanceNorm2d:
            _convert(module)
            norms[id(module)] = name
            report.replaced.append((name, "InstanceNorm2d"))
        elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and type(module) is not InstanceNorm2d:
            report.left.append((name, _why_left(module)))
    for name, module in model.named_modules():
        if type(module) is nn.Sequential:
            _merge_activations(name, module, uses, report)
        elif isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward:
            if any(id(child) in norms for child in module):
                report.left.append((name, "activations not merged: this Sequential has a forward of its own"))
    model.fuse_report = report
    return model


def _implementation(model: nn.Module) -> str:
    like = next(model.parameters(), None)
    device = like.device.type if like is not None else "cpu"
    if device == "cuda":
        why, active = backends.triton_reason(), "triton"
    elif device == "cpu":
        why, active = backends.cpu_reason(), "cpu"
    else:
        why, active = f"no kernels for {device}", ""
    return f"on {device} the reference runs, no gain to expect ({why})" if why else f"{active} kernels run on {device}"


def _convert(norm: nn.InstanceNorm2d) -> None:
    # The class changes and the object stays: whoever holds the module, its parameters or its hooks still holds them.
    norm.__class__ = InstanceNorm2d
    norm._set_epilogue("none", 0.2, 0, "auto")


def _why_left(norm: nn.Module) -> str:
    if isinstance(norm, (nn.InstanceNorm1d, nn.InstanceNorm3d)):
        return f"{type(norm).__name__}: only InstanceNorm2d has a fused module"
    if isinstance(norm, nn.modules.lazy.LazyModuleMixin):
        return f"{type(norm).__name__}: not initialised yet; run the model once, then fuse"
    return f"{type(norm).__name__} is a subclass of InstanceNorm2d and may compute something else"


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, kind, None) for kind in _HOOKS)


def _merge_activations(name: str, sequence: nn.Sequential, uses: Counter, report: FuseReport) -> None:
    children = list(sequence._modules.items())  # named_children would skip a module that comes twice
    for (norm_key, norm), (key, activation) in zip(children, children[1:]):
        if type(norm) is not InstanceNorm2d or norm.activation != "none" or norm.padding:
            continue
        if type(activation) not in (nn.ReLU, nn.LeakyReLU):
            continue
        place = f"{name}.{key}" if name else key
        kind = type(activation).__name__
        if uses[id(norm)] > 1:
            report.left.append((place, f"{kind}: its norm is used in more than one place"))
        elif _hooked(norm) or _hooked(activation):
            report.left.append((place, f"{kind}: a hook watches it or the norm before it"))
        else:
            norm.activation = "relu" if kind == "ReLU" else "leaky_relu"
            if kind == "LeakyReLU":
                norm.negative_slope = float(activation.negative_slope)
            identity = nn.Identity()
            identity.training = activation.training
            sequence._modules[key] = identity
            before = f"{name}.{norm_key}" if name else norm_key
            report.replaced.append((place, f"{kind} merged into {before}"))
