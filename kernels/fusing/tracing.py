"""From the forward of a block to one in which norms take along what follows them, by torch.fx.

A block is a module that is no Sequential and holds norms, or Sequentials that end with one. Its children are leaves of
the trace.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from kernels.fusing.classes import root_class, set_class
from kernels.fusing.reading import why_not_traced
from kernels.fusing.rewriting import IN_PLACE, Program, rewritten
from kernels.fusing.trial import random_state, set_random_state


def _writes(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def write(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return write


class _Proxy(fx.Proxy):
    """A proxy to which `x += y` writes, as it does to a tensor: torch.fx records `x = x + y`."""


for _operator in IN_PLACE:
    setattr(_Proxy, f"__{_operator.__name__}__", _writes(_operator))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def arguments_of(module: nn.Module) -> list[str] | None:
    """The names of the arguments a call has to give; None where their number is free."""
    names, forward = [], root_class(module).forward
    if not isinstance(forward, types.FunctionType):
        return None
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD or parameter.default is not parameter.empty:
            continue
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return None
        names.append(parameter.name)
    return names


def programs_of(module: nn.Module) -> tuple[dict[bool, Program], str]:
    """For train and eval mode, the forward in which norms take along what follows; empty where there is nothing to
    take, with the reason where the forward cannot be traced. `module`: one that can be derived from."""
    why = why_not_traced(module)
    if why:
        return {}, why
    before = {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
    cls, programs, changed = type(module), {}, ""
    set_class(module, _traced_class(module))
    try:
        for training in (True, False):
            vars(module)["training"] = training
            first, second = _trace(module, True), _trace(module, False)
            if str(first) != str(second):
                return {}, "its forward depends on whether gradients are recorded"
            programs[training] = rewritten(module, first)
    except _Left as left:
        return {}, str(left)
    finally:
        set_class(module, cls)
        vars(module)["training"] = before["training"]
        changed = _restore(module, before)
    if changed:
        return {}, f"its forward changes `self.{changed}`"
    useful = any(program.merges or program.takes_tail for program in programs.values())
    return (programs if useful else {}), ""


def _traced_class(module: nn.Module) -> type[nn.Module]:
    """The class of `module` with a forward that takes what a call has to give, and leaves out the rest."""
    root, names = root_class(module), ", ".join(arguments_of(module) or [])
    variables = {"_fused_own": root.forward}
    exec(f"def forward(_fused_self, {names}): return _fused_own(_fused_self, {names})", variables)
    return types.new_class(root.__name__, (root,), exec_body=lambda body: body.update(forward=variables["forward"]))


class _Left(Exception):
    """The reason why a block stays what it was."""


def _restore(module: nn.Module, before: dict[str, Any]) -> str:
    """Puts back what tracing has changed of the object's attributes, and names one of them."""
    changed = ""
    for key in {*before, *vars(module)}:
        if key not in before:
            del vars(module)[key]
            changed = key
        elif isinstance(before[key], dict):
            if vars(module)[key] != before[key]:
                vars(module)[key].clear()
                vars(module)[key].update(before[key])
                changed = key
        elif vars(module).get(key) is not before[key]:
            vars(module)[key] = before[key]
            changed = key
    return changed


def _trace(module: nn.Module, gradients: bool) -> fx.Graph:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    state = random_state(device)
    try:
        with torch.set_grad_enabled(gradients):
            graph = _Tracer().trace(module)
    except Exception as error:  # somebody else's code under a tool that does not take all code
        reason = str(error).splitlines()[0] if str(error) else ""
        raise _Left(f"torch.fx cannot trace its forward ({type(error).__name__}: {reason})") from None
    if random_state(device) != state:
        set_random_state(state, device)
        raise _Left("its forward draws random numbers")
    for node in graph.nodes:
        if node.op == "get_attr" and "constant" in node.target:
            raise _Left("its forward makes tensors of its own")
        if node.op == "call_module" and "." in node.target:
            raise _Left("its forward calls a part of one of its parts")
    return graph
