"""Whether the tensors of a call may be handed to a kernel by address: asked before any pointer is taken.

What a kernel reads and writes, torch does not see. That is right for plain dense tensors with memory of their own,
while nobody records, batches or differentiates what torch sees: a wrapper has no memory, a trace would hold the
allocation of the results and nothing that fills them, a tangent would be dropped. There the reference serves, which
torch sees whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# True for wrappers, sparse and meta tensors, and for every tensor while a dispatch mode is active.
_unlike_plain = torch._C._dispatch_isTensorSubclassLike
_traced = torch._C._is_tracing
_transform = torch._C._functorch.maybe_current_level  # pyright: ignore[reportAttributeAccessIssue] (not in the stubs)
_function_mode = torch._C._is_torch_function_mode_enabled

_KINDS = {
    "Python": "a {type} and has no memory of its own",
    "FuncTorchBatched": "batched by torch.vmap",
    "Batched": "batched by torch.autograd (is_grads_batched, jacobian with vectorize=True)",
    "FuncTorchGradWrapper": "inside a transform of torch.func",
    "Functionalize": "a functional tensor and has no memory of its own",
    "Negative": "a view with torch's negative bit, whose memory holds other numbers (resolve_neg() writes them out)",
    "Conjugate": "a view with torch's conjugate bit, whose memory holds other numbers (resolve_conj() writes them out)",
    "ZeroTensor": "a zero tensor without memory",
}
_KEYS = {torch._C._parse_dispatch_key(name): text for name, text in _KINDS.items()}
_PROXY = torch._C._TorchDispatchModeKey.PROXY
_FINDERS = (torch._C._get_dispatch_mode, torch._ops._get_dispatch_mode_pre_dispatch)


def why_not(tensors: Sequence[torch.Tensor | None], names: Sequence[str]) -> str:
    """Why these tensors may not be handed on by address; empty when they may. `names` go with `tensors`, over and over
    where there are fewer. Not for code that torch.compile traces."""
    # all that most calls cost: a few C functions of some 30 ns
    if _traced() or _transform() is not None or _function_mode() or forward_ad._current_level >= 0:
        return _look(tensors, names)
    for t in tensors:
        if t is not None and (_unlike_plain(t) or t.is_neg()):
            return _look(tensors, names)
    return ""


def addressable(*tensors: torch.Tensor | None) -> bool:
    """Whether a backward may hand on these gradients by address."""
    return not why_not(tensors, ("the gradient",))


def why_not_compiled(tensors: Sequence[torch.Tensor | None], names: Sequence[str]) -> str:
    """`why_not` for code that torch.compile or torch.export traces: registered ops stand for the kernels, but only
    torch's own operators can be exported, transformed and spread over wrappers."""
    if torch.compiler.is_exporting():
        return "torch.export records this call, and others than this library are to run what it records"
    if _transforming():
        return "a transform of torch.func or a forward-mode derivative is being compiled"
    for i, t in enumerate(tensors):
        if t is not None and is_traceable_wrapper_subclass(t):
            return f"{_name(i, len(tensors), names)} is a tensor subclass"
    return ""


F = TypeVar("F", bound=Callable)


def constant_to_compile(function: F) -> F:
    """torch.compiler.assume_constant_result, which sets this attribute, without its import of torch's compiler: that is
    40 % of the time `import kernels` would take (1.8 s of 4.5)."""
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010 (type checkers know no such attribute)
    return function


# A constant to torch.compile, which enters the transforms it traces and compiles anew under others.
@constant_to_compile
def _transforming() -> bool:
    return _transform() is not None or forward_ad._current_level >= 0


def _name(i: int, count: int, names: Sequence[str]) -> str:
    name = names[i % len(names)]
    return name if count <= len(names) else f"{name}[{i // len(names)}]"


def _look(tensors: Sequence[torch.Tensor | None], names: Sequence[str]) -> str:
    if _traced():
        return "torch.jit.trace (or an exporter on it) records this call, and of a kernel it would record nothing"
    if _transform() is not None:
        return "a transform of torch.func (vmap, grad, jvp, ...) is active, and it cannot see into a kernel"
    if any(find(_PROXY) is not None for find in _FINDERS):
        return "make_fx records this call, and of a kernel it would record nothing"
    for i, t in enumerate(tensors):
        what = "" if t is None else _kind(t)
        if what:
            return f"{_name(i, len(tensors), names)} is {what}"
    if torch._C._len_torch_dispatch_stack():
        # a mode that only looks on changes nothing; one that makes other tensors gives a kernel no memory to write to
        device = next((t.device for t in tensors if t is not None), None)
        what = _kind(torch.empty(0, device=device))
        if what:
            return f"under the active dispatch mode a new tensor is {what}"
    return ""


def _kind(t: torch.Tensor) -> str:
    """What t is that a plain dense tensor is not; empty for one."""
    keys = torch._C._dispatch_keys(t)
    for key, text in _KEYS.items():
        if keys.has(key):  # pyright: ignore[reportArgumentType] (the stubs name another class)
            return text.format(type=type(t).__name__)
    if t.layout != torch.strided:
        return f"of layout {t.layout}"
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:
        return "a forward-mode dual tensor, and kernels have no forward-mode derivative"
    return ""
