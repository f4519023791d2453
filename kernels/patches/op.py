"""sample_patches and tap_patches: checks, choice of implementation, autograd.

Eager calls go through one autograd.Function straight to a launcher; while torch.compile traces, the same function calls
a registered op of `fused_i2i` instead (see kernels/norm/op.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch

from kernels import _guard, backends
from kernels.patches import ownership, reference
from kernels.patches.checks import (
    as_ids,
    check_features,
    check_fits,
    check_generator,
    check_map,
    check_num_patches,
    check_positions,
    given_ids,
)
from kernels.patches.spec import Layout, dense_copy, is_dense, layout_of, new_map, new_rows, positions

Tensor = torch.Tensor

_launcher = functools.partial(backends.launcher, "patches")


# ---- the registered ops, for torch.compile ---------------------------------------------------------------------------

# Layouts travel as the sizes of all maps in a row, their numbers of dimensions, and their memory orders.
_library = torch.library.Library("fused_i2i", "FRAGMENT")
_library.define("sample_patches(Tensor[] maps, Tensor[] ids, str impl) -> Tensor[]")
_library.define(
    "sample_patches_backward(Tensor[] grads, Tensor[] ids, SymInt[] sizes, int[] dims, bool[] channels_last, "
    "bool unique, str impl) -> Tensor[]"
)
_library.define("tap_patches_backward(Tensor grad, Tensor rows, Tensor ids, bool channels_last, str impl) -> Tensor")


def _packed(layouts: Sequence[Layout]) -> tuple[list[int], list[int], list[bool]]:
    sizes = list(itertools.chain.from_iterable(layout.size for layout in layouts))
    return sizes, [len(layout.size) for layout in layouts], [layout.channels_last for layout in layouts]


def _unpacked(sizes: Sequence[int], dims: Sequence[int], channels_last: Sequence[bool]) -> list[Layout]:
    ends = list(itertools.accumulate(dims))
    return [Layout(tuple(sizes[end - d : end]), last) for end, d, last in zip(ends, dims, channels_last)]


def _run_sample(maps, ids, impl):
    if impl != "cpu":
        for layer, (x, at) in enumerate(zip(maps, ids)):
            check_positions(f"ids[{layer}]", at, x)
    return _launcher(impl).forward(maps, ids)


def _run_sample_backward(grads, ids, sizes, dims, channels_last, unique, impl):
    return _launcher(impl).backward(grads, ids, _unpacked(sizes, dims, channels_last), unique)


def _run_tap_backward(grad, rows, ids, channels_last, impl):
    total = dense_copy(grad, channels_last)
    _launcher(impl).add(total, rows, ids)
    return total


for _key in backends.KEYS:
    _library.impl("sample_patches", _run_sample, _key)
    _library.impl("sample_patches_backward", _run_sample_backward, _key)
    _library.impl("tap_patches_backward", _run_tap_backward, _key)


@torch.library.register_fake("fused_i2i::sample_patches")
def _(maps, ids, impl):
    return [new_rows(x, at) for x, at in zip(maps, ids)]


@torch.library.register_fake("fused_i2i::sample_patches_backward")
def _(grads, ids, sizes, dims, channels_last, unique, impl):
    return [new_map(layout, rows) for rows, layout in zip(grads, _unpacked(sizes, dims, channels_last))]


@torch.library.register_fake("fused_i2i::tap_patches_backward")
def _(grad, rows, ids, channels_last, impl):
    return new_map(Layout(tuple(grad.shape), channels_last), grad)


_sample_patches = torch.ops.fused_i2i.sample_patches.default
_sample_patches_backward = torch.ops.fused_i2i.sample_patches_backward.default
_tap_patches_backward = torch.ops.fused_i2i.tap_patches_backward.default


# ---- autograd --------------------------------------------------------------------------------------------------------


def _gather(impl: str, maps: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
    if torch.compiler.is_compiling():
        return _sample_patches(maps, ids, impl)
    return _launcher(impl).forward(maps, ids)


def _scatter(impl: str, unique: bool, rows, ids, layouts) -> list[Tensor]:
    if torch.compiler.is_compiling():
        return _sample_patches_backward(rows, ids, *_packed(layouts), unique, impl)
    return _launcher(impl).backward(rows, ids, layouts, unique)


class _Sample(torch.autograd.Function):
    """Maps to patches. Keeps the positions and the maps' sizes, not the maps."""

    @staticmethod
    def forward(ctx, impl, unique, *maps_and_ids):
        count = len(maps_and_ids) // 2
        maps, ids = maps_and_ids[:count], maps_and_ids[count:]
        ctx.save_for_backward(*ids)
        ctx.impl, ctx.unique, ctx.layouts = impl, unique, [layout_of(x) for x in maps]
        ctx.set_materialize_grads(False)
        return tuple(_gather(impl, maps, ids))

    @staticmethod
    def backward(ctx, *grads):
        ids, need = ctx.saved_tensors, ctx.needs_input_grad[2:]
        found: list[Tensor | None] = [None] * (2 * len(grads))
        wanted = [i for i in range(len(grads)) if grads[i] is not None and need[i]]
        if wanted:
            rows, at, layouts = ([of[i] for i in wanted] for of in (grads, ids, ctx.layouts))
            # asked first: torch.compile would trace the other branches too
            if torch.compiler.is_compiling():
                dense = _scatter(ctx.impl, ctx.unique, rows, at, layouts)
            elif not _guard.addressable(*rows):
                dense = [reference.spread(*three) for three in zip(rows, at, layouts)]
            elif torch.is_grad_enabled():
                dense = _Spread.apply(ctx.impl, ctx.unique, layouts, *rows, *at)
            else:
                dense = _scatter(ctx.impl, ctx.unique, rows, at, layouts)
            for i, gradient in zip(wanted, dense):
                found[i] = gradient
        return None, None, *found


class _Spread(torch.autograd.Function):
    """Patches to maps that are zero elsewhere: the derivative of _Sample, whose own is _Sample again."""

    @staticmethod
    def forward(ctx, impl, unique, layouts, *rows_and_ids):
        count = len(rows_and_ids) // 2
        rows, ids = rows_and_ids[:count], rows_and_ids[count:]
        ctx.save_for_backward(*ids)
        ctx.impl, ctx.unique = impl, unique
        ctx.set_materialize_grads(False)
        return tuple(_scatter(impl, unique, rows, ids, layouts))

    @staticmethod
    def backward(ctx, *grads):
        ids = ctx.saved_tensors
        found: list[Tensor | None] = [None] * (2 * len(grads))
        wanted = [i for i in range(len(grads)) if grads[i] is not None]
        if wanted:
            maps, at = [grads[i] for i in wanted], [ids[i] for i in wanted]
            if torch.compiler.is_compiling() or _guard.addressable(*maps):
                rows = _Sample.apply(ctx.impl, ctx.unique, *maps, *at)
            else:
                rows = map(reference.sample, maps, at)
            for i, gradient in zip(wanted, rows):
                found[i] = gradient
        return None, None, None, *found


class _Tap(torch.autograd.Function):
    """A map passes through and leaves patches. Backward adds their gradients into the map's own, in its memory where
    nobody else holds that. What passes is a view: autograd must know that both names share memory."""

    @staticmethod
    def forward(ctx, x, ids, impl):
        ctx.save_for_backward(ids)
        ctx.impl, ctx.layout = impl, layout_of(x)
        ctx.set_materialize_grads(False)
        return x.view_as(x), _gather(impl, (x,), (ids,))[0]

    @staticmethod
    def backward(ctx, grad, rows):
        if rows is None:
            return grad, None, None
        (ids,) = ctx.saved_tensors
        if torch.compiler.is_compiling():
            if grad is None:
                return _scatter(ctx.impl, False, [rows], [ids], [ctx.layout])[0], None, None
            return _tap_patches_backward(grad, rows, ids, ctx.layout.channels_last, ctx.impl), None, None
        if not _guard.addressable(grad, rows):
            spread = reference.spread(rows, ids, ctx.layout)
            return spread if grad is None else grad + spread, None, None
        if torch.is_grad_enabled():  # create_graph=True
            (spread,) = _Spread.apply(ctx.impl, False, [ctx.layout], rows, ids)
            return spread if grad is None else grad + spread, None, None
        if grad is None:
            return _launcher(ctx.impl).backward([rows], [ids], [ctx.layout], False)[0], None, None
        if not (ownership.owned(grad) and is_dense(grad)):
            grad = dense_copy(grad, ctx.layout.channels_last)
        _launcher(ctx.impl).add(grad, rows, ids)
        return grad, None, None


# torch forbids changes in place of views that a Function returns, because they would lose its backward. Losing _Tap's
# for the map is right: it passes that gradient as it is, and the patches keep theirs. So the view may be one like any
# other, which torch rebases on either side. Without these private functions torch refuses such changes, with a message.
_autograd = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue] (not in the stubs)
_meta_of = getattr(_autograd, "_get_creation_meta", None)
_set_meta = getattr(_autograd, "_set_creation_meta", None)


def _let_change_in_place(passed: Tensor, x: Tensor) -> None:
    """passed: the map _Tap returned for x. As changeable as a plain view of x would be."""
    if _meta_of is None or _set_meta is None:
        return
    _set_meta(passed, _meta_of(x) if x._is_view() else _autograd.CreationMeta.DEFAULT)


def _sample(maps: Sequence[Tensor], ids: Sequence[Tensor], impl: str, unique: bool) -> list[Tensor]:
    """Patches of maps that all take this fused implementation."""
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in maps)):
        return _gather(impl, maps, ids)
    if torch.compiler.is_compiling():
        # views: torch.compile refuses one tensor as two arguments of a Function
        maps, ids = [x.view_as(x) for x in maps], [at.view_as(at) for at in ids]
    return list(_Sample.apply(impl, unique, *maps, *ids))


# ---- public ----------------------------------------------------------------------------------------------------------


def _draw(x: Tensor, num_patches: int | None, generator: torch.Generator | None) -> Tensor:
    """Positions of x without repetition; drawn where the generator lives."""
    count = positions(x)
    if num_patches is None:
        return torch.arange(count, device=x.device)
    device = x.device if generator is None else generator.device
    drawn = torch.randperm(count, generator=generator, device=device)[:num_patches]
    return drawn.to(x.device)


def sample_patches(
    features: Sequence[Tensor],
    num_patches: int | None = 256,
    ids: Sequence[object] | None = None,
    *,
    generator: torch.Generator | None = None,
    impl: str = "auto",
) -> tuple[list[Tensor], list[Tensor]]:
    """Features at some positions of several maps, as CUT contrasts them (Park et al. 2020, arXiv 2007.15651).

    patches[l][b, p] = features[l][b, :, ids[l][p]], with the spatial positions counted in row-major order. All maps are
    read in one pass, where they are: contiguous, channels last, or as the inside of a larger map.

    Args:
        features: list of maps (B, C, *spatial), each of any size, batch and dtype (float32, bfloat16, float16, or
            float64 through the reference), all on one device.
        num_patches: P, how many positions to draw of each map, without repetition and shared by its batch; None takes
            all positions in order. Not used with `ids`.
        ids: for each map its positions (P,), integers as a tensor, NumPy array or sequence; repeated ones are allowed
            and their gradients add up. None draws them with torch.randperm, one call for each map in order.
        generator: for the draw, on any device. With one on the maps' device, or none, nothing waits for the device.
        impl: "auto", "reference", "cpu" or "triton" (see `kernels.backend_report`).

    Returns:
        (patches, ids): for each map (B, P, C) in the map's dtype, and the positions int64 (P,) on the maps' device, to
        sample other maps at. The gradient of a map is dense, in its dtype and memory format; rows of one position are
        added in float32, in their order, before they are rounded.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype or device; more patches than positions;
            positions outside a map. Positions that are on a GPU already are not looked at, since the host would have
            to wait for them: those outside the map yield rows of NaN and no gradient.
        kernels.BackendUnavailable: `impl` names an implementation that cannot run.
    """
    check_features(features)
    check_num_patches(num_patches)
    check_generator(generator)
    if ids is None:
        for layer, x in enumerate(features):
            check_fits(num_patches, layer, x)
        at = [_draw(x, num_patches, generator) for x in features]
    else:
        at = given_ids(ids, features)
    chosen = [backends.choose(impl, *both, names=("a map of features", "its ids")) for both in zip(features, at)]
    # The C++ operator looks at positions itself, and counts its own maps alone.
    if ids is not None and any(name != "cpu" for name in chosen):
        for layer, x in enumerate(features):
            check_positions(f"ids[{layer}]", at[layer], x)
    patches: dict[int, Tensor] = {}
    fused = [layer for layer, name in enumerate(chosen) if name != "reference"]
    if fused:
        found = _sample([features[i] for i in fused], [at[i] for i in fused], chosen[fused[0]], ids is None)
        for layer, rows in zip(fused, found):
            patches[layer] = rows
    for layer, x in enumerate(features):
        if layer not in patches:
            patches[layer] = reference.sample(x, at[layer])
    return [patches[layer] for layer in range(len(features))], at


def tap_patches(x: Tensor, ids: object, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """Passes a map on and returns its features at some positions, without a gradient map of their own.

    Where a network goes on from x, use the returned map in its place: the gradient that comes back for it is the one
    the patches' rows are added to, in its own memory where only autograd holds it (else in a copy). Sampling x by
    `sample_patches` instead costs a map of zeros and the sum of two maps.

    Args:
        x: (B, C, *spatial), dtypes as in `sample_patches`.
        ids: (P,), integers as a tensor, NumPy array or sequence; may repeat. As in `sample_patches`.
        impl: "auto", "reference", "cpu" or "triton".

    Returns:
        (x, patches): a view of x, or x itself where no gradient is recorded, and (B, P, C) in x's dtype. Changes in
        place of either map are changes of both, which autograd follows or refuses as for any view.

    Raises:
        TypeError, ValueError, kernels.BackendUnavailable: as `sample_patches`.
    """
    check_map("x", x)
    at = as_ids("ids", ids, x)
    chosen = backends.choose(impl, x, at, names=("x", "ids"))
    check_positions("ids", at, x)  # here, for the C++ operator would call them ids[0]
    recorded = torch.is_grad_enabled() and x.requires_grad
    if chosen == "reference":
        return x.view_as(x) if recorded else x, reference.sample(x, at)
    if not recorded:
        return x, _gather(chosen, (x,), (at,))[0]
    if torch.compiler.is_compiling():
        return _Tap.apply(x, at, chosen)
    ownership.prepare()
    passed, patches = _Tap.apply(x, at, chosen)
    _let_change_in_place(passed, x)
    return passed, patches
