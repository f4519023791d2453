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

    def __reduce_ex__(self, protocol: int):
        how = super().__reduce_ex__(max(protocol, 2))
        parts = vars(type(self)).get("_derived_from")
        if parts is None or how[0] is not _newobj:  # a class of its own way, or derived once more
            return how
        return (_new, (*parts, *how[1][1:]), *how[2:])


def _new(behaviour: type[Derived], base: type[nn.Module], *args: object) -> nn.Module:
    cls = _derived(behaviour, base)
    return cls.__new__(cls, *args)


@functools.cache
def _derived(behaviour: type[Derived], base: type[nn.Module]) -> type[nn.Module]:
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(
        base.__name__, (behaviour, base), exec_body=lambda body: body.update(names, _derived_from=(behaviour, base))
    )


def derive(module: nn.Module, behaviour: type[Derived]) -> str:
    """Puts `behaviour` before the class of `module`, or says why that cannot be done or might change something else."""
    if "forward" in vars(module):
        return "its forward was replaced on the object"
    own = {name for cls in type(module).__mro__[:-1] for name in vars(cls)}
    if "__init_subclass__" in own:
        return "its class acts on being subclassed"
    if own & {"__reduce__", "__reduce_ex__"}:
        return "its class has its own way of being pickled"
    try:
        module.__class__ = _derived(behaviour, type(module))
    except TypeError as error:  # a metaclass, or slots
        return f"its class cannot be derived from ({error})"
    return ""


def untouched(module: nn.Module) -> bool:
    """Whether to call it and to run its forward as its class has it come to the same."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
