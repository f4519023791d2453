"""`fuse`: goes through a model that nobody here wrote, and replaces what can be replaced."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from kernels import backends
from kernels.fusing import norms, resampling, sequential
from kernels.fusing.report import FuseReport, place
from kernels.norm.module import InstanceNorm2d
from kernels.resample import ReflectionPad2d


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
            sequential.merge(name, module, report)
    merged = {name for name, _ in report.merged}
    report.replaced = [(name, what) for name, what in report.replaced if name not in merged]
    vars(model)["fuse_report"] = report
    return model


def _implementation(model: nn.Module) -> str:
    like = next(model.parameters(), None)
    device = like.device if like is not None else torch.device("cpu")
    active, why = backends.automatic(device)
    if why:  # its norm takes six times as long as torch's: two passes for the mean, no fusion
        return f"on {device.type} the reference runs, slower than the model was ({why})"
    return f"{active} kernels run on {device.type}"


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """named_modules, without what lies inside a module that is taken as a whole."""
    wholes: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(wholes)):
            continue
        yield name, module  # which may make it a fused blur
        if isinstance(module, torch.jit.ScriptModule) or resampling.is_fused_blur(module):
            wholes.append(place(name, ""))


def _replace(name: str, module: nn.Module, report: FuseReport) -> None:
    """Replaces `module` if it is one that can be, and reports it, also where an earlier fuse has replaced it."""
    what, why = "", ""
    if isinstance(module, torch.jit.ScriptModule):
        why = "a ScriptModule: compiled code cannot be changed"
    elif type(module) in (InstanceNorm2d, ReflectionPad2d):
        what = type(module).__name__ if "_fused" in vars(module) else ""  # else its author put it there
    elif type(module) is nn.InstanceNorm2d:
        what, why = "InstanceNorm2d", norms.why_not_norm(module)
        if not why:
            norms.become_norm(module)
            vars(module)["_fused"] = True
    elif type(module) is nn.ReflectionPad2d:
        what, why = "ReflectionPad2d", resampling.why_not_pad(module)
        if not why:
            resampling.become_pad(module)
            vars(module)["_fused"] = True
    elif isinstance(module, nn.modules.instancenorm._InstanceNorm):
        why = norms.why_left(module)
    elif resampling.is_fused_blur(module):
        what = resampling.blur_name(module)
    elif resampling.looks_like_blur(module):
        why = resampling.fuse_blur(module)
        what = type(module).__name__ if why else resampling.blur_name(module)
    if why:
        report.left.append((name, f"{what}: {why}" if what else why))
    elif what:
        report.replaced.append((name, what))
