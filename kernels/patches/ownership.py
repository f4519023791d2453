"""Whether a gradient inside a backward belongs to the autograd engine alone, so that it may be written in place.

Torch has no public answer. Four counts give it: references to the tensor, tensors on its memory, and references to the
Python objects of both. Of a gradient nobody else holds they are the smallest that can be; what those smallest counts
are depends on Python and torch, so they are measured once on a graph of a few numbers, together with cases in which
somebody does hold the gradient, which must show. If they do not, or torch lost these private functions, every gradient
counts as shared: callers then copy, which is slower and always right.
"""

from __future__ import annotations

import sys

import torch

Tensor = torch.Tensor

_Counts = tuple[int, int, int, int]

_alone: _Counts | None = None  # the counts of a gradient only the engine owns
_measured = False


def _counts(g: Tensor) -> _Counts:
    storage = g.untyped_storage()  # one object, made anew only where nobody holds it: the memory's count is the same
    uses = g._use_count()  # pyright: ignore[reportAttributeAccessIssue] (not in the stubs)
    return uses, torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(g), sys.getrefcount(storage)


class _Probe(torch.autograd.Function):
    """Shaped as _Tap in op.py: two results, a backward with two gradients, which asks `owned` of the first."""

    @staticmethod
    def forward(ctx, x, found):
        ctx.found = found
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.new_empty(2)

    @staticmethod
    def backward(ctx, g, rows):
        ctx.found.append(_observe(g))
        return g, None


def _observe(g: Tensor) -> _Counts:
    # one frame between backward and the counts, as in `owned`
    return _counts(g)


def owned(g: Tensor) -> bool:
    """Whether nobody but the engine holds g, an argument of the running backward of an autograd.Function, or its
    memory. Call it from that backward itself: every frame in between is one more reference."""
    if _alone is None or type(g) is not Tensor:
        return False
    storage = g.untyped_storage()
    # memory that torch did not allocate, as that of a NumPy array, has owners it cannot count
    if not storage.resizable():
        return False
    del storage
    now = _counts(g)
    return all(count <= limit for count, limit in zip(now, _alone))


def _measure() -> _Counts | None:
    held: list[object] = []

    def probe(use) -> _Counts:
        found: list[_Counts] = []
        with torch.enable_grad():
            x = torch.zeros(2, requires_grad=True)
            earlier = x * 1.0  # of two nodes that could run, the engine takes the younger
            use(x, earlier, _Probe.apply(x * 1.0, found)[0])
        return found[0]

    def keep(g: Tensor) -> None:
        held.append(g)

    def keep_alias(g: Tensor) -> None:
        held.append(g.detach())

    def keep_storage(g: Tensor) -> None:
        held.append(g.untyped_storage())

    def hooked(hook):
        def use(x: Tensor, earlier: Tensor, t: Tensor) -> None:
            t.register_hook(hook)
            (t * 2.0).sum().backward()

        return use

    def given(x: Tensor, earlier: Tensor, t: Tensor) -> None:
        g = torch.ones(2)
        t.backward(g)

    def given_view(x: Tensor, earlier: Tensor, t: Tensor) -> None:
        g = torch.ones(2)
        t.view(2, 1).backward(g.view(2, 1))

    def captured(x: Tensor, earlier: Tensor, t: Tensor) -> None:
        torch.autograd.grad((t * 2.0).sum(), [t, x])

    def pending(x: Tensor, earlier: Tensor, t: Tensor) -> None:
        (t + earlier).mul(2.0).sum().backward()

    try:
        alone = probe(lambda x, earlier, t: (t * 2.0).sum().backward())
        again = probe(lambda x, earlier, t: (t * 2.0).sum().backward())
        hooks = [hooked(hook) for hook in (keep, keep_alias, keep_storage)]
        others = [probe(use) for use in (*hooks, given, given_view, captured, pending)]
    except (AttributeError, RuntimeError, TypeError, IndexError):
        return None
    shows = all(any(count > least for count, least in zip(other, alone)) for other in others)
    # one tensor, on memory that only it and the storage object just made refer to: anything else counts something else
    return alone if alone == again and alone[:2] == (1, 2) and shows else None


def _watched() -> bool:
    """Whether something looks on that may keep references of its own and so raise what is taken for the smallest."""
    modes = torch._C._len_torch_dispatch_stack() + torch._C._len_torch_function_stack()
    return modes > 0 or sys.gettrace() is not None or sys.getprofile() is not None


def prepare() -> None:
    """Measures, once per process, at the first call that nothing looks on at."""
    global _alone, _measured
    if _measured:
        return
    try:
        if _watched():
            return
    except AttributeError:
        pass
    else:
        with torch.inference_mode(False):
            _alone = _measure()
    _measured = True
