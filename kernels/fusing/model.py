"""Drop-in replacement inside models that nobody here wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from kernels import backends
from kernels.fusing import resampling, sequential
from kernels.fusing.classes import derive, untouched
from kernels.norm.module import InstanceNorm2d
from kernels.resample import ReflectionPad2d


@dataclass
class FuseReport:
    """What `fuse` has done to a model, in all its calls: (module name, text) pairs. `str(report)` is the readable form.

    `replaced` are the modules that compute by this library, `merged` those that a Sequential computes in the call of
    the norm before them. No module is in both.
    """

    replaced: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    implementation: str = ""
    merged: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{len(self.replaced)} replaced, {len(self.merged)} merged, {len(self.left)} left"
        lines = [f"kernels.fuse: {counts}; {self.implementation}"]
        lines += [f"  {name or '(the model itself)'}: {what}" for name, what in self.replaced + self.merged]
        lines += [f"  {name or '(the model itself)'}: left, {why}" for name, why in self.left]
        return "\n".join(lines)


def fuse(model: nn.Module) -> nn.Module:
    """Puts this library's operators into `model`, in place, and returns it.

    * Every torch.nn.InstanceNorm2d becomes `kernels.InstanceNorm2d`, every torch.nn.ReflectionPad2d
      `kernels.ReflectionPad2d`.
    * A Sequential computes a norm, a ReLU or LeakyReLU directly behind it and a reflection padding of equal sides
      behind that in one call. It does so when it is run as a whole, and only while no hook watches one of them; each of
      them stays where it is and computes what it did for whoever indexes, slices or loops over the Sequential, shares a
      module or looks for one. Subclasses that keep the forward of torch.nn.Sequential are included.
    * Antialiased sampling as CUT has it is computed by `kernels.blur_downsample` and `kernels.blur_upsample`. It is
      known by its structure (a buffer `filt` with a published filter, a padding module, no parameters) and by what it
      computes, with its gradient, on two small maps, not by its name. Should its filter, its padding or an attribute
      change later, its own forward runs until the next `fuse`; a compiled one keeps the filter it was compiled with.

    Modules, parameters, buffers, state-dict keys and hooks stay the ones they were, so optimisers and references remain
    valid; results are the same. What changes is the class of these modules, to one derived from theirs with the same
    name: `isinstance` and methods stay, `type(m) is nn.Sequential` does not. In a fused run the map between norm and
    activation is never made, so an in-place ReLU there has nothing to overwrite; a hook that holds that map sees what
    it saw, overwritten or not.

    torch.fx traces a fused model, with the modules one by one. TorchScript and eager quantisation know modules by their
    class: script or quantise the model first (what is quantised then is left).

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
    for name, module in _modules(model):
        _replace(name, module, report)
    for name, module in _modules(model):
        if isinstance(module, nn.Sequential):
            _merge(name, module, report)
    merged = {name for name, _ in report.merged}
    report.replaced = [(name, what) for name, what in report.replaced if name not in merged]
    model.fuse_report = report
    return model


def _implementation(model: nn.Module) -> str:
    like = next(model.parameters(), None)
    device = like.device.type if like is not None else "cpu"
    if device == "cuda":
        why, active = backends.why_no_triton(), "triton"
    elif device == "cpu":
        why, active = backends.why_no_cpu(), "cpu"
    else:
        why, active = f"no kernels for {device}", ""
    return f"on {device} the reference runs, no gain to expect ({why})" if why else f"{active} kernels run on {device}"


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """named_modules, without what lies inside a module that is taken as a whole."""
    wholes: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(wholes)):
            continue
        yield name, module  # which may make it a fused blur
        if isinstance(module, torch.jit.ScriptModule) or resampling.is_fused_blur(module):
            wholes.append(_place(name, ""))


def _place(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


# ---- one module ------------------------------------------------------------------------------------------------------


def _replace(name: str, module: nn.Module, report: FuseReport) -> None:
    """Replaces `module` if it is one that can be, and reports it, also where an earlier fuse has replaced it."""
    what, why = "", ""
    if isinstance(module, torch.jit.ScriptModule):
        why = "a ScriptModule: compiled code cannot be changed"
    elif type(module) in (InstanceNorm2d, ReflectionPad2d):
        what = type(module).__name__ if "_fused" in vars(module) else ""  # else its author put it there
    elif type(module) is nn.InstanceNorm2d:
        what, why = "InstanceNorm2d", _why_not_norm(module)
        if not why:
            # The class changes and the object stays: whoever holds the module, its parameters or its hooks still does.
            module.__class__ = InstanceNorm2d
            module._set_epilogue("none", 0.2, 0, "auto")
            module._fused = True
    elif type(module) is nn.ReflectionPad2d:
        what, why = "ReflectionPad2d", resampling.why_not_pad(module)
        if not why:
            resampling.become_pad(module)
            module._fused = True
    elif isinstance(module, nn.modules.instancenorm._InstanceNorm):
        why = _why_left(module)
    elif resampling.is_fused_blur(module):
        what = resampling.blur_name(module)
    elif resampling.looks_like_blur(module):
        why = resampling.fuse_blur(module)
        what = type(module).__name__ if why else resampling.blur_name(module)
    if why:
        report.left.append((name, f"{what}: {why}" if what else why))
    elif what:
        report.replaced.append((name, what))


def _why_not_norm(norm: nn.InstanceNorm2d) -> str:
    if "forward" in vars(norm):
        return "its forward was replaced on the object"
    if type(norm.eps) not in (float, int) or not 0 <= norm.eps < math.inf:
        return f"eps={norm.eps!r}, want a finite float >= 0"
    taken = [key for key in ("activation", "negative_slope", "padding", "impl") if hasattr(norm, key)]
    return f"it has an attribute `{taken[0]}` of its own" if taken else ""


def _why_left(norm: nn.Module) -> str:
    if isinstance(norm, (nn.InstanceNorm1d, nn.InstanceNorm3d)):
        return f"{type(norm).__name__}: only InstanceNorm2d has a fused module"
    if isinstance(norm, nn.modules.lazy.LazyModuleMixin):
        return f"{type(norm).__name__}: not initialised yet; run the model once, then fuse"
    return f"{type(norm).__name__} is a subclass of InstanceNorm2d and may compute something else"


# ---- runs of modules -------------------------------------------------------------------------------------------------


def _merge(name: str, sequence: nn.Sequential, report: FuseReport) -> None:
    """Lets `sequence` run together what may, and reports what will and what might have."""
    keys, layers = list(sequence._modules), list(sequence._modules.values())
    merged, left = [], []
    for at, norm in enumerate(layers):
        if type(norm) is not InstanceNorm2d:
            continue
        run = sequential.run_at(layers, at)
        count = run.count if run else 0
        for key, module in zip(keys[at + 1 : at + 1 + count], layers[at + 1 :]):
            what = f"{type(module).__name__} merged into {_place(name, keys[at])}"
            merged.append((_place(name, key), what))
        if at + 1 + count < len(layers):
            key, module = keys[at + 1 + count], layers[at + 1 + count]
            why = _why_apart(norm, module, count)
            if why:
                left.append((_place(name, key), why))
    if not merged or isinstance(sequence, sequential.FusedSequential):
        report.merged += merged
        report.left += left
        return
    own = any(getattr(type(sequence), key) is not getattr(nn.Sequential, key) for key in ("forward", "__iter__"))
    why = "this Sequential has a forward of its own" if own else derive(sequence, sequential.FusedSequential)
    if why:
        report.left.append((name, f"activations and paddings not merged: {why}"))
        return
    report.merged += merged
    report.left += left


def _why_apart(norm: InstanceNorm2d, module: nn.Module, merged: int) -> str:
    """Of a module behind a norm and the `merged` ones: why it is not merged, if one could expect it; else empty."""
    kinds = (nn.ReLU, nn.LeakyReLU, ReflectionPad2d) if not merged else (ReflectionPad2d,)
    if type(module) not in kinds or norm.padding:
        return ""
    kind = type(module).__name__
    if "forward" in vars(norm) or "forward" in vars(module):
        return f"{kind}: its forward or that of the norm before it was replaced on the object"
    if not untouched(norm) or not untouched(module):
        return f"{kind}: a hook watches it or the norm before it"
    if type(module) is nn.LeakyReLU and norm.activation == "none":
        return f"{kind}: negative_slope={module.negative_slope!r}, want a finite float"
    return ""
