"""What a forward depends on besides its arguments, read from its code before torch.fx traces it.

A trace holds what happened in one run. It is the forward only where nothing but the arguments can make another run
differ, and these are the ways in which it could that a trace does not show.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from kernels.fusing.classes import root_class

_BLOCKS = {"SETUP_WITH", "BEFORE_WITH", "SETUP_FINALLY", "PUSH_EXC_INFO", "LOAD_SPECIAL"}  # of Python 3.10 to 3.14
_LOOKS = {
    "isinstance",
    "hasattr",
    "getattr",
    "type",
    "is_tensor",
    "callable",
    "vars",
    "globals",
    "locals",
    "eval",
    "exec",
}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format)


def why_not_traced(module: nn.Module) -> str:
    """Why the forward of `module` may do something else in another run with other tensors; empty if nothing says so."""
    forward = root_class(module).forward
    if not isinstance(forward, types.FunctionType) or hasattr(forward, "__wrapped__"):
        return "its forward is decorated"
    for function in _functions(module, forward, set()):
        why = _why_not(module, function)
        if why:
            return f"{why} (in {function.__qualname__})"
    return ""


def _functions(
    module: nn.Module, function: types.FunctionType, seen: set[types.CodeType]
) -> Iterator[types.FunctionType]:
    """`function` and what it calls by name: methods of the module, functions of its file and of others than torch."""
    if function.__code__ in seen:
        return
    seen.add(function.__code__)
    yield function
    for name in function.__code__.co_names:
        for called in (getattr(root_class(module), name, None), function.__globals__.get(name)):
            called = called.fget if isinstance(called, property) else getattr(called, "__func__", called)
            if isinstance(called, types.FunctionType) and str(called.__module__).partition(".")[0] != "torch":
                yield from _functions(module, called, seen)


def _why_not(module: nn.Module, function: types.FunctionType) -> str:
    if hasattr(function, "__wrapped__"):
        return "a decorated function"
    if any(variable != "__class__" for variable in function.__code__.co_freevars):
        return "it has variables of another function"
    for code in _codes(function.__code__):
        if code.co_name == "<lambda>":
            return "a lambda"
        instructions = [i for i in dis.get_instructions(code) if i.opname not in ("PUSH_NULL", "PRECALL", "CACHE")]
        if any(instruction.opname in _BLOCKS for instruction in instructions):
            return "a `with` or `try`"
        for first, second in zip(instructions, instructions[1:]):
            if first.opname.startswith("LOAD_") and first.argval in _LOOKS and not _is_self(code, second):
                return f"it asks what `{first.argval}` says"
            if second.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(first.argval, str):
                if first.argval in module._modules and second.argval not in ("weight", "bias"):
                    return f"it reads `self.{first.argval}.{second.argval}`, which may change unseen"
        for name in code.co_names:
            why = _why_not_name(module, name, function.__globals__)
            if why:
                return why
    return ""


def _is_self(code: types.CodeType, instruction: dis.Instruction) -> bool:
    """Whether it loads the first argument: what is asked of the module is seen when it changes, what is asked of a
    tensor the trace cannot answer."""
    value = instruction.argval[0] if isinstance(instruction.argval, tuple) else instruction.argval
    return instruction.opname.startswith("LOAD_FAST") and code.co_argcount > 0 and value == code.co_varnames[0]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _why_not_name(module: nn.Module, name: str, variables: dict[str, object]) -> str:
    if name in ("print", "checkpoint", "checkpoint_sequential"):
        return f"it calls `{name}`, which a trace leaves out"
    if name in variables and not _is_fixed(variables[name]):
        return f"it reads the global variable `{name}`"
    if isinstance(variables.get(name), types.ModuleType) and not _is_known(variables[name]):
        return f"it uses the module `{name}`"
    if name in vars(module) and not _is_plain(vars(module)[name]):
        return f"it reads `self.{name}`, of type {type(vars(module)[name]).__name__}, which may change unseen"
    if isinstance(getattr(module, name, None), (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
        return f"it goes through `self.{name}`, whose parts may change unseen"
    return ""


def _is_known(module: Any) -> bool:
    """Whether what its functions do with tensors a trace shows, and all else they return is fixed."""
    return module.__name__.partition(".")[0] in ("torch", "math")


def _is_fixed(value: object) -> bool:
    return isinstance(value, (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type))


def _is_plain(value: object) -> bool:
    """Whether only an assignment to the attribute, which is noticed, can change it."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (*_PLAIN, types.FunctionType, types.BuiltinFunctionType, type)) or value is torch.Tensor
