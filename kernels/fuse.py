"""Drop-in replacement inside models that nobody here wrote."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn

from kernels import backends, fuse_resample
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
    """Puts this library's operators into `model`, in place, and returns it.

    * Every torch.nn.InstanceNorm2d becomes `kernels.InstanceNorm2d`, every torch.nn.ReflectionPad2d
      `kernels.ReflectionPad2d`.
    * Antialiased sampling as CUT has it becomes `kernels.BlurDownsample` and `kernels.BlurUpsample`. It is known by its
      structure (a buffer `filt` with a published filter, a padding module, no parameters) and by what it computes on
      two small maps, not by its name.
    * A norm followed directly by ReLU or LeakyReLU in a Sequential takes the activation over, and a reflection padding
      of equal sides after that. An Identity keeps the index of each.

    Parameters, buffers, state-dict keys, hooks and module objects stay the ones they were, so optimisers and references
    remain valid; results are the same. What a reader might miss: code that collects the map between a norm and what was
    merged into it, by Sequential index, sees the activated map (as it already does with an in-place ReLU), and where a
    padding was merged the padded one.

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
    for name, module in list(model.named_modules()):
        if type(module) is nn.InstanceNorm2d:
            _convert(module)
            report.replaced.append((name, "InstanceNorm2d"))
        elif isinstance(module, nn.modules.instancenorm._InstanceNorm) and type(module) is not InstanceNorm2d:
            report.left.append((name, _why_left(module)))
        else:
            fuse_resample.convert(name, module, report)
    for name, module in model.named_modules():
        if type(module) is nn.Sequential:
            _merge_activations(name, module, uses, report)
            _merge_paddings(name, module, uses, report)
        elif isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward:
            if any(type(child) is InstanceNorm2d for child in module):
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


def _place(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _put_identity(sequence: nn.Sequential, key: str) -> None:
    identity = nn.Identity()
    identity.training = sequence._modules[key].training
    sequence._modules[key] = identity


def _merge_activations(name: str, sequence: nn.Sequential, uses: Counter, report: FuseReport) -> None:
    children = list(sequence._modules.items())  # named_children would skip a module that comes twice
    for (norm_key, norm), (key, activation) in zip(children, children[1:]):
        if type(norm) is not InstanceNorm2d or norm.activation != "none" or norm.padding:
            continue
        if type(activation) not in (nn.ReLU, nn.LeakyReLU):
            continue
        kind = type(activation).__name__
        if uses[id(norm)] > 1:
            report.left.append((_place(name, key), f"{kind}: its norm is used in more than one place"))
        elif _hooked(norm) or _hooked(activation):
            report.left.append((_place(name, key), f"{kind}: a hook watches it or the norm before it"))
        else:
            norm.activation = "relu" if kind == "ReLU" else "leaky_relu"
            if kind == "LeakyReLU":
                norm.negative_slope = float(activation.negative_slope)
            _put_identity(sequence, key)
            report.replaced.append((_place(name, key), f"{kind} merged into {_place(name, norm_key)}"))


def _merge_paddings(name: str, sequence: nn.Sequential, uses: Counter, report: FuseReport) -> None:
    """norm [-> Identity of a merged activation] -> reflection padding."""
    children = list(sequence._modules.items())
    for at, (key, pad) in enumerate(children):
        if type(pad) is not fuse_resample.ReflectionPad2d or len(set(pad.padding)) > 1 or pad.padding[0] == 0:
            continue
        before = at - 1
        while before >= 0 and type(children[before][1]) is nn.Identity and not _hooked(children[before][1]):
            before -= 1
        if before < 0:
            continue
        norm_key, norm = children[before]
        if type(norm) is not InstanceNorm2d or norm.padding:
            continue
        if uses[id(norm)] > 1:
            report.left.append((_place(name, key), "not merged: the norm before it is used in more than one place"))
        elif _hooked(norm) or _hooked(pad):
            report.left.append((_place(name, key), "not merged: a hook watches it or the norm before it"))
        else:
            norm.padding = pad.padding[0]
            _put_identity(sequence, key)
            report.replaced.append((_place(name, key), f"ReflectionPad2d merged into {_place(name, norm_key)}"))
