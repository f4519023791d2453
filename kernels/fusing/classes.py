"""How `fuse` changes what a module of somebody else's class does: a class derived from that one, with another forward.

The module object stays, and so do its attributes, methods, name and `isinstance`. Only its forward is another one,
which can always hand over to the one it had.
"""

from __future__ import annotations

import copyreg
import functools
import types

from torch import nn

from kernels._tools import NotScriptable

_newobj = copyreg.__newobj__  # pyright: ignore[reportAttributeAccessIssue] (not in the stubs)


class Derived(NotScriptable):
    """First base of every derived class. Such a class has no name that pickle could find it by; its parts have."""

    _modules: dict[str, nn.Module]  # of the nn.Module that is the other base
    _fused_outermost = False  # whether this behaviour stays before those that come later, and nothing may go past it

    def __reduce_ex__(self, protocol: int):
        how = super().__reduce_ex__(max(protocol, 2))
        behaviours, root = _parts(type(self))
        if type(self) is root or how[0] is not _newobj:  # a class that somebody else derived, or of its own way
            return how
        return (_new, (behaviours, root, *how[1][1:]), *how[2:])


def _parts(cls: type) -> tuple[tuple[type[Derived], ...], type[nn.Module]]:
    """The behaviours that were put before a class, the last first, and that class."""
    behaviours = []
    while "_derived_from" in vars(cls):
        behaviour, cls = vars(cls)["_derived_from"]
        behaviours.append(behaviour)
    return tuple(behaviours), cls


def _new(behaviours: tuple[type[Derived], ...], root: type[nn.Module], *args: object) -> nn.Module:
    cls = _built(behaviours, root)
    return cls.__new__(cls, *args)


def _built(behaviours: tuple[type[Derived], ...], cls: type[nn.Module]) -> type[nn.Module]:
    for behaviour in reversed(behaviours):
        cls = _derived(behaviour, cls)
    return cls


@functools.cache
def _derived(behaviour: type[Derived], base: type[nn.Module]) -> type[nn.Module]:
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(
        base.__name__, (behaviour, base), exec_body=lambda body: body.update(names, _derived_from=(behaviour, base))
    )


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Past the `__setattr__` of a derived class, to which an assignment means that somebody has changed the module."""
    object.__setattr__(module, "__class__", cls)


def why_not_derived(module: nn.Module, behaviour: type[Derived]) -> str:
    """Why `behaviour` cannot be put before the class of `module`, or might change something else; else empty."""
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    own = {name for cls in type(module).__mro__[:-1] if not issubclass(cls, Derived) for name in vars(cls)}
    if "__init_subclass__" in own:
        return "its class acts on being subclassed"
    if own & {"__reduce__", "__reduce_ex__"}:
        return "its class has its own way of being pickled"
    for name in _names(behaviour):
        if hasattr(module, name) and not _is_of_ours(type(module), name):
            return f"it has an attribute `{name}` of its own"
    return ""


def _names(behaviour: type[Derived]) -> list[str]:
    """Of the attributes that it would put before those of a module. The forward is meant to; `_fused...` is ours."""
    names = {name for cls in behaviour.__mro__ if issubclass(cls, Derived) for name in vars(cls)}
    return sorted(name for name in names if not name.startswith(("__", "_fused")) and name != "forward")


def _is_of_ours(cls: type, name: str) -> bool:
    owner = next((c for c in cls.__mro__ if name in vars(c)), object)
    return issubclass(owner, Derived)


def derive(module: nn.Module, behaviour: type[Derived]) -> str:
    """Puts `behaviour` before the class of `module`, or says why not."""
    why = why_not_derived(module, behaviour)
    if why:
        return why
    behaviours, cls = _parts(type(module))
    around = [b for b in behaviours if b._fused_outermost]
    try:
        set_class(module, _built((*around, behaviour, *(b for b in behaviours if not b._fused_outermost)), cls))
    except TypeError as error:  # a metaclass, or slots
        return f"its class cannot be derived from ({error})"
    return ""


def underive(module: nn.Module, behaviour: type[Derived]) -> None:
    """Takes `behaviour` away again, which `derive` has put there; others stay."""
    behaviours, cls = _parts(type(module))
    set_class(module, _built(tuple(b for b in behaviours if b is not behaviour), cls))


def root_class(module: nn.Module) -> type[nn.Module]:
    """The class that `module` had before anything was put before it."""
    return _parts(type(module))[1]


def untouched(module: nn.Module) -> bool:
    """Whether to call it and to run its forward as its class has it come to the same."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or getattr(type(module), "_fused_outermost", False)
    )
