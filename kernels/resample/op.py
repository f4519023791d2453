"""blur_downsample, blur_upsample, reflection_pad2d: checks, choice of implementation, autograd.

Eager calls go through one autograd.Function straight to a launcher; while torch.compile traces, the same function calls
a registered op of `fused_i2i` instead (see kernels/norm/op.py). The operators are linear: the derivative of one is its
transposed, and that one's the operator itself, so derivatives of every order take the fused path.
"""

from __future__ import annotations

import functools

import torch

from kernels import _guard, backends
from kernels._layout import is_channels_last
from kernels.resample import reference
from kernels.resample.checks import as_padding, check_filter_size, check_planes, check_room
from kernels.resample.spec import DOWN, PAD, UP, Spec, new_output
from kernels.resample.taps import margins

Tensor = torch.Tensor


_launcher = functools.partial(backends.launcher, "resample")


# ---- the registered op, for torch.compile ----------------------------------------------------------------------------

_library = torch.library.Library("fused_i2i", "FRAGMENT")
_library.define(
    "resample(Tensor x, int kind, int[] rows, int[] columns, SymInt height, SymInt width, bool transposed, "
    "bool channels_last, str impl) -> Tensor"
)


def _spec(kind, rows, columns, height, width, transposed) -> Spec:
    return Spec(kind, tuple(rows), tuple(columns), height, width, transposed)


def _run(x, kind, rows, columns, height, width, transposed, channels_last, impl):
    return _launcher(impl).apply(x, _spec(kind, rows, columns, height, width, transposed), channels_last)


for _key in backends.KEYS:
    _library.impl("resample", _run, _key)


@torch.library.register_fake("fused_i2i::resample")
def _(x, kind, rows, columns, height, width, transposed, channels_last, impl):
    return new_output(x, _spec(kind, rows, columns, height, width, transposed), channels_last)


_resample = torch.ops.fused_i2i.resample.default


# ---- autograd --------------------------------------------------------------------------------------------------------


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, spec, channels_last, impl):
        ctx.spec, ctx.channels_last, ctx.impl = spec, channels_last, impl
        if torch.compiler.is_compiling():
            return _resample(x, *spec, channels_last, impl)
        return _launcher(impl).apply(x, spec, channels_last)

    @staticmethod
    def backward(ctx, grad):
        spec = ctx.spec._replace(transposed=not ctx.spec.transposed)
        if torch.compiler.is_compiling():  # asked first: torch.compile would trace the other branches too
            return _resample(grad, *spec, ctx.channels_last, ctx.impl), None, None, None
        if not _guard.addressable(grad):
            return reference.resample(grad, spec), None, None, None
        if torch.is_grad_enabled():  # create_graph=True
            return _Resample.apply(grad, spec, ctx.channels_last, ctx.impl), None, None, None
        return _launcher(ctx.impl).apply(grad, spec, ctx.channels_last), None, None, None


def _apply(x: Tensor, kind: int, rows: tuple[int, int], columns: tuple[int, int], impl: str) -> Tensor:
    spec = Spec(kind, rows, columns, x.shape[2], x.shape[3])
    chosen = backends.choose(impl, x)
    if chosen == "reference":
        return reference.resample(x, spec)
    channels_last = is_channels_last(x)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return _Resample.apply(x, spec, channels_last, chosen)
    return _launcher(chosen).apply(x, spec, channels_last)


# ---- public ----------------------------------------------------------------------------------------------------------


def blur_downsample(x: Tensor, *, filter_size: int = 3, impl: str = "auto") -> Tensor:
    """Halves the sides of x behind a binomial filter, as CUT's Downsample does (Zhang 2019, arXiv 1904.11486).

    Reflection padding of (filter_size - 1) // 2 pixels before and filter_size // 2 behind, the outer product of the
    binomial row with itself, sum 1 ([1, 2, 1] x [1, 2, 1] / 16 by default), every second row and column.

    Args:
        x: (N, C, H, W), float32, bfloat16, float16, or float64 (reference only); contiguous or channels last; rows
            may lie apart, as those of the inside of a larger map.
        filter_size: 2 to 7; H and W must be larger than filter_size // 2.
        impl: "auto", "reference", "cpu" or "triton" (see `kernels.backend_report`).

    Returns:
        (N, C, ceil(H / 2), ceil(W / 2)), dtype and memory format of x; 16-bit maps are added in float32 and rounded
        once. Derivatives of every order take the same path.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype or shape.
        kernels.BackendUnavailable: `impl` names an implementation that cannot run.
    """
    check_planes(x)
    check_filter_size(filter_size)
    filter_size = int(filter_size)
    margin = margins(DOWN, (filter_size, 0))
    check_room("filter_size", filter_size, x, margin, margin)
    return _apply(x, DOWN, (filter_size, 0), (filter_size, 0), impl)


def blur_upsample(x: Tensor, *, impl: str = "auto") -> Tensor:
    """Doubles the sides of x, as CUT's Upsample does: [1, 3, 3, 1] x [1, 3, 3, 1] / 16 over replicated borders, which
    is bilinear interpolation with half-pixel centres (`align_corners=False`).

    Returns (N, C, 2 H, 2 W). Arguments, derivatives and errors as in `blur_downsample`.
    """
    check_planes(x)
    return _apply(x, UP, (0, 0), (0, 0), impl)


def reflection_pad2d(x: Tensor, padding: int | tuple[int, int, int, int], *, impl: str = "auto") -> Tensor:
    """torch.nn.ReflectionPad2d, with a gradient that gathers: each pixel adds up its mirror images in a fixed order,
    in float32.

    Args:
        x: (N, C, H, W), as in `blur_downsample`.
        padding: pixels on every side, or (left, right, top, bottom) as in torch; each >= 0 and smaller than its side.

    Returns:
        (N, C, H + top + bottom, W + left + right), dtype and memory format of x; a copy where nothing is
        padded, as in torch. Derivatives and errors as in `blur_downsample`.
    """
    check_planes(x)
    left, right, top, bottom = as_padding(padding)
    check_room("padding", padding, x, (top, bottom), (left, right))
    if not (left or right or top or bottom):
        backends.choose(impl, x)  # for its errors
        return x.clone()  # what follows may work in place
    return _apply(x, PAD, (top, bottom), (left, right), impl)
