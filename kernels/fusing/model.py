"""`fuse`: goes through a model that nobody here wrote, and replaces what can be replaced."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from kernels import backends
from kernels.fusing import (
    adaptive,
    block,
    group_norm,
    layer_norm,
    memory_format,
    norms,
    paddings,
    precision,
    projected,
    resampling,
    sampling,
    sequential,
)
from kernels.fusing.heads import is_head
from kernels.fusing.report import FuseReport, place

# Each knows one kind of module: looks_like(module), cheap; take(module), which puts an operator behind its forward or
# says why not; name_of(module), what it computes by now, empty if nothing; give_back(module), of any module.
RECOGNISERS = (norms, paddings, resampling, adaptive, projected, layer_norm, group_norm, sampling)


def fuse(model: nn.Module) -> nn.Module:
    """Puts this library's operators into `model`, in place, and returns it.

    * Every torch.nn.InstanceNorm1d, 2d and 3d becomes that of `kernels`, every torch.nn.ReflectionPad2d
      `kernels.ReflectionPad2d`.
    * A Sequential computes a norm, a ReLU or LeakyReLU directly behind it and a reflection padding of equal sides
      behind that in one call. It does so when it is run as a whole, and only while no hook watches one of them; each of
      them stays where it is and computes what it did for whoever indexes, slices or loops over the Sequential, shares a
      module or looks for one. Subclasses that keep the forward of torch.nn.Sequential are included.
    * A block that calls its norms by name gives them the ReLU or LeakyReLU behind them (module, function or method) and
      the sum behind that, `x + block(x)` included. torch.fx traces its forward, with its children as leaves; a forward
      that depends on more than a trace holds is left. Other arguments than tensors, hooks on the norm or the
      activation, or an attribute assigned later run its own forward.
    * AdaIN of MUNIT, FUNIT, StarGAN v2 and imaginaire, MUNIT's layer norm, and torch.nn.GroupNorm with one group for
      each channel are computed by the norms of this library; CUT's sampler of patch features by
      `kernels.sample_patches`, with the draw it had. All but GroupNorm are known by their structure and by what they
      compute, with its gradient, on small maps.
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
    check_model(model)
    before = vars(model).get("fuse_report")
    report = FuseReport(implementation=_implementation(model), notes=before.notes if before else [])
    for name, module in modules_of(model):
        _replace(name, module, report)
    modules = list(modules_of(model))
    for name, module in reversed(modules):  # parts before their owners, which may give them something to take along
        if isinstance(module, nn.Sequential):
            sequential.merge(name, module, report)
        elif not is_head(module):
            block.merge(name, module, report)
    report.sort([name for name, _ in modules])
    merged = {name for name, _ in report.merged}
    report.replaced = [(name, what) for name, what in report.replaced if name not in merged]
    vars(model)["fuse_report"] = report
    return model


def check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, want a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model: got a ScriptModule, want the module it was made from: compiled code cannot be changed")


def _implementation(model: nn.Module) -> str:
    like = next(model.parameters(), None)
    device = like.device if like is not None else torch.device("cpu")
    active, why = backends.automatic(device)
    if why:  # its norm takes six times as long as torch's: two passes for the mean, no fusion
        return f"on {device.type} the reference runs, slower than the model was ({why})"
    return f"{active} kernels run on {device.type}"


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """named_modules, without what lies inside a module that is taken as a whole."""
    wholes: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(wholes)):
            continue
        yield name, module  # which may take it
        if isinstance(module, torch.jit.ScriptModule) or any(r.name_of(module) for r in RECOGNISERS):
            wholes.append(place(name, ""))


def _replace(name: str, module: nn.Module, report: FuseReport) -> None:
    """Takes `module` if it is one that can be, and reports it, also where an earlier fuse has taken it."""
    if isinstance(module, torch.jit.ScriptModule):
        report.left.append((name, "a ScriptModule: compiled code cannot be changed"))
        return
    for recogniser in RECOGNISERS:
        why = ""
        if not recogniser.name_of(module):
            if not recogniser.looks_like(module):
                continue
            why = recogniser.take(module)
        if why:
            report.left.append((name, f"{type(module).__name__}: {why}"))
        else:
            report.replaced.append((name, recogniser.name_of(module)))
        return


def unfuse(model: nn.Module) -> nn.Module:
    """Undoes `fuse` and `accelerate` on `model`, in place, and returns it: the classes that its modules had, and the
    memory order that its weights had. Parameters, buffers, hooks and state-dict keys stay the ones they are.

    Raises:
        TypeError: `model` is no nn.Module, or a ScriptModule.
    """
    check_model(model)
    for module in list(model.modules()):
        for part in (precision, *RECOGNISERS, sequential, block, memory_format):
            part.give_back(module)
        vars(module).pop("fuse_report", None)
    return model
