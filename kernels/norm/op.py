"""instance_norm, adaptive_instance_norm, adain and munit_layer_norm: checks, choice of implementation, autograd.

Eager calls go from the public function through one autograd.Function straight to a launcher (about 10 microseconds; a
registered op with register_autograd would add 20). While torch.compile traces, the same function calls the registered
op `fused_i2i::norm_forward` or `norm_backward` instead, which the compiler treats as one opaque node.
"""

from __future__ import annotations

import functools

import torch

from kernels import _guard, backends
from kernels._checks import check_flag
from kernels._dtypes import no_autocast
from kernels._layout import dense, is_channels_last
from kernels.norm import reference
from kernels.norm.checks import as_spec, check_alpha, check_input, check_matches, check_per_sample, check_style
from kernels.norm.spec import INSTANCE, INSTANCE_UNBIASED, LAYER_STD, Spec, new_output, new_stats

Tensor = torch.Tensor

_launcher = functools.partial(backends.launcher, "norm")


# ---- the registered ops, for torch.compile ---------------------------------------------------------------------------

_SPEC = "int kind, float eps, float offset, int activation, float slope, int padding, str impl"
_library = torch.library.Library("fused_i2i", "DEF")
_library.define(f"norm_forward(Tensor x, Tensor? scale, Tensor? shift, Tensor? residual, {_SPEC}) -> (Tensor, Tensor)")
_library.define(
    "norm_backward(Tensor grad, Tensor x, Tensor? scale, Tensor? shift, Tensor stats, bool need_residual, "
    f"{_SPEC}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define("plane_stats(Tensor x, int kind, float eps, str impl) -> Tensor")
_library.define(
    "plane_stats_backward(Tensor grad_mean, Tensor grad_std, Tensor x, Tensor stats, int kind, str impl) -> Tensor"
)


def _or_empty(t: Tensor | None, like: Tensor) -> Tensor:
    """An op returns a fixed number of tensors: an empty one stands for a gradient nobody asked for."""
    return like.new_empty(0) if t is None else t


def _run_forward(x, scale, shift, residual, *options):
    *spec, impl = options
    return _launcher(impl).forward(x, scale, shift, residual, Spec(*spec))


def _run_backward(grad, x, scale, shift, stats, need_residual, *options):
    *spec, impl = options
    grads = _launcher(impl).backward(grad, x, scale, shift, stats, need_residual, Spec(*spec))
    return tuple(_or_empty(g, x) for g in grads)


for _key in backends.KEYS:
    _library.impl("norm_forward", _run_forward, _key)
    _library.impl("norm_backward", _run_backward, _key)
    _library.impl("plane_stats", lambda x, kind, eps, impl: _launcher(impl).moments(x, kind, eps), _key)
    _library.impl("plane_stats_backward", lambda *given: _launcher(given[-1]).moments_backward(*given[:-1]), _key)


@torch.library.register_fake("fused_i2i::norm_forward")
def _(x, scale, shift, residual, kind, eps, offset, activation, slope, padding, impl):
    x = dense(x, is_channels_last(x))
    return new_output(x, padding, is_channels_last(x)), new_stats(x)


@torch.library.register_fake("fused_i2i::norm_backward")
def _(grad, x, scale, shift, stats, need_residual, kind, eps, offset, activation, slope, padding, impl):
    x = dense(x, is_channels_last(x))
    parameters = [None if p is None else torch.empty_like(p, dtype=torch.float32) for p in (scale, shift)]
    residual = torch.empty_like(x) if need_residual else None
    return torch.empty_like(x), *(_or_empty(g, x) for g in (*parameters, residual))


@torch.library.register_fake("fused_i2i::plane_stats")
def _(x, kind, eps, impl):
    return new_stats(x)


@torch.library.register_fake("fused_i2i::plane_stats_backward")
def _(grad_mean, grad_std, x, stats, kind, impl):
    return torch.empty_like(dense(x, is_channels_last(x)))


_norm_forward = torch.ops.fused_i2i.norm_forward.default
_norm_backward = torch.ops.fused_i2i.norm_backward.default
_plane_stats = torch.ops.fused_i2i.plane_stats.default
_plane_stats_backward = torch.ops.fused_i2i.plane_stats_backward.default


# ---- autograd --------------------------------------------------------------------------------------------------------


def _as(t: Tensor | None, like: Tensor | None) -> Tensor | None:
    if like is None or t is None:
        return None
    return t if t.dtype == like.dtype else t.to(like.dtype)  # `to` costs a microsecond where there is nothing to do


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, shift, residual, spec, impl):
        if torch.compiler.is_compiling():
            y, stats = _norm_forward(x, scale, shift, residual, *spec, impl)
        else:
            y, stats = _launcher(impl).forward(x, scale, shift, residual, spec)
        ctx.save_for_backward(x, scale, shift, stats)
        ctx.spec, ctx.impl = spec, impl
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 6
        x, scale, shift, stats = ctx.saved_tensors
        spec, need = ctx.spec, ctx.needs_input_grad
        fold = need[3] and spec.padding > 0  # unpadded, the residual's gradient is grad itself
        if torch.compiler.is_compiling():  # asked first: torch.compile would trace the other branches too
            dx, dscale, dshift, dresidual = _norm_backward(grad, x, scale, shift, stats, fold, *spec, ctx.impl)
        elif torch.is_grad_enabled() or not _guard.addressable(grad):  # create_graph=True: R1, WGAN-GP
            return (*_differentiable_backward(grad, x, scale, shift, need, spec), None, None)
        else:
            dx, dscale, dshift, dresidual = _launcher(ctx.impl).backward(grad, x, scale, shift, stats, fold, spec)
        if not need[3]:
            dresidual = None
        elif not fold:
            dresidual = grad
        return dx if need[0] else None, _as(dscale, scale), _as(dshift, shift), dresidual, None, None


def _differentiable_backward(grad, x, scale, shift, need, spec):
    """The same gradients as differentiable torch expressions of grad, x, scale and shift. The residual's values do
    not matter: y is linear in it."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), no_autocast(x.device.type):
        residual = torch.zeros_like(x, requires_grad=True) if need[3] else None
        y = reference.norm(x, scale, shift, residual, spec)
        wanted = [t for t, n in zip((x, scale, shift, residual), need) if n and t is not None]
        grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=create_graph))
    return tuple(next(grads) if n else None for n in need[:4])


class _PlaneMoments(torch.autograd.Function):
    """Mean and sqrt(unbiased variance + eps) of every plane, (N, C) each, float32."""

    @staticmethod
    def forward(ctx, x, eps, impl):
        if torch.compiler.is_compiling():
            stats = _plane_stats(x, INSTANCE_UNBIASED, eps, impl)
        else:
            stats = _launcher(impl).moments(x, INSTANCE_UNBIASED, eps)
        ctx.save_for_backward(x, stats)
        ctx.eps, ctx.impl = eps, impl
        std = stats[3].reciprocal()
        return stats[0].clone(), std.masked_fill(stats[3] == 0, 0.0) if eps == 0 else std

    @staticmethod
    def backward(ctx, grad_mean, grad_std):
        x, stats = ctx.saved_tensors
        if torch.compiler.is_compiling():
            dx = _plane_stats_backward(grad_mean, grad_std, x, stats, INSTANCE_UNBIASED, ctx.impl)
        elif torch.is_grad_enabled() or not _guard.addressable(grad_mean, grad_std):
            create_graph = torch.is_grad_enabled()
            with torch.enable_grad(), no_autocast(x.device.type):
                moments = reference.plane_moments(x, ctx.eps)
                (dx,) = torch.autograd.grad(moments, x, (grad_mean, grad_std), create_graph=create_graph)
        else:
            dx = _launcher(ctx.impl).moments_backward(grad_mean, grad_std, x, stats, INSTANCE_UNBIASED)
        return dx, None, None


def norm_with_stats(x, scale, shift, residual, spec: Spec, impl: str) -> tuple[Tensor, Tensor | None]:
    """Checked arguments in; y and, from a fused implementation, the float32 statistics (4, N, C) it used."""
    if residual is not None and residual.dtype != x.dtype:
        residual = residual.to(x.dtype)  # only under autocast: check_matches refuses it elsewhere
    if impl == "reference":
        return reference.norm(x, scale, shift, residual, spec), None
    if torch.compiler.is_compiling():
        # views: torch.compile refuses one tensor as two arguments of a Function, as in x + IN(x)
        shift, residual = (None if t is None else t.view_as(t) for t in (shift, residual))
    elif not torch.is_grad_enabled():
        return _launcher(impl).forward(x, scale, shift, residual, spec)  # 4 of 11 microseconds less than through apply
    return _Norm.apply(x, scale, shift, residual, spec, impl)


# ---- public ----------------------------------------------------------------------------------------------------------


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
    padding: int = 0,
    impl: str = "auto",
) -> Tensor:
    """Instance norm (Ulyanov et al. 2016, arXiv 1607.08022), activation, residual and reflection padding in one pass.

    y = pad(act(weight * (x - mean) / sqrt(var + eps) + bias) + residual), mean and biased variance over each plane
    (n, c).

    Args:
        x: (N, C, *spatial), float32, bfloat16, float16, or float64 (reference only); contiguous or channels last.
        weight, bias: (C,), any floating dtype; either may be None.
        eps: added to the variance. With 0, a constant plane becomes 0, as in torch.
        activation: "none", "relu", "leaky_relu" (slope `negative_slope`) or "tanh".
        residual: shape, dtype (inside autocast: any) and device of x; added after the activation.
        padding: pixels of reflection padding on each of the four sides; x must be 4-D and padding < H, W.
        impl: "auto", "reference", "cpu", "triton" or "cuda" (see `kernels.backend_report`).

    Returns:
        dtype and memory format of x; (N, C, *spatial), with padding (N, C, H + 2 padding, W + 2 padding). Statistics
        are computed in float32 for every dtype, float64 for float64.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; planes of one element.
        kernels.BackendUnavailable: `impl` names an implementation that cannot run.
    """
    check_input("instance_norm", x, per_plane=True)
    channels = (x.shape[1],)
    check_matches("weight", weight, channels, x, any_float=True)
    check_matches("bias", bias, channels, x, any_float=True)
    spec = as_spec(INSTANCE, x, eps, 0.0, activation, negative_slope, residual, padding)
    chosen = backends.choose(impl, x, weight, bias, residual, names=("x", "weight", "bias", "residual"))
    return norm_with_stats(x, weight, bias, residual, spec, chosen)[0]


def adaptive_instance_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: float = 1e-5,
    unit_offset: bool = False,
    activation: str = "none",
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
    padding: int = 0,
    impl: str = "auto",
) -> Tensor:
    """Adaptive instance norm with per-sample parameters: MUNIT (arXiv 1804.04732), FUNIT; with `unit_offset` StarGAN v2
    (arXiv 1912.01865) and imaginaire.

    As `instance_norm`, with scale and shift of shape (N, C): pad(act(scale * x_hat + shift) + residual), or (1 +
    scale) * x_hat with `unit_offset`. MUNIT's decoder passes the first C columns of its MLP as shift and the next C
    as scale.
    """
    check_input("adaptive_instance_norm", x, per_plane=True)
    check_flag("unit_offset", unit_offset)
    check_per_sample("scale", scale, x)
    check_per_sample("shift", shift, x)
    spec = as_spec(INSTANCE, x, eps, float(unit_offset), activation, negative_slope, residual, padding)
    chosen = backends.choose(impl, x, scale, shift, residual, names=("x", "scale", "shift", "residual"))
    return norm_with_stats(x, scale, shift, residual, spec, chosen)[0]


def adain(content: Tensor, style: Tensor, *, alpha: float = 1.0, eps: float = 1e-5, impl: str = "auto") -> Tensor:
    """Statistic transfer of Huang and Belongie (arXiv 1703.06868): the content's planes take the style's mean and
    deviation.

    t = std(style) * (content - mean(content)) / std(content) + mean(style), with std = sqrt(unbiased variance + eps)
    on both sides; returns alpha * t + (1 - alpha) * content.

    Args:
        content: (N, C, *spatial).
        style: (N, C, *spatial), dtype (inside autocast: any) and device of content; its spatial size is free.
        alpha: strength in [0, 1].
        eps: added to both variances. With 0, a constant plane of the content becomes the style's mean.

    Returns:
        shape, dtype and memory format of content. Differentiable in content and style.
    """
    check_input("adain", content, per_plane=True, name="content")
    check_input("adain", style, per_plane=True, name="style")
    check_style(style, content)
    check_alpha(alpha)
    alpha = float(alpha)
    spec = as_spec(INSTANCE_UNBIASED, content, eps, 0.0, "none", 0.2, None, 0)
    chosen = backends.choose(impl, content, style, names=("content", "style"))
    if style.dtype == torch.float64 != content.dtype:
        style = style.float()
    if chosen == "reference":
        mean, std = reference.plane_moments(style, spec.eps)
    else:
        mean, std = _PlaneMoments.apply(style, spec.eps, chosen)
    residual = None
    if alpha != 1:
        mean, std, residual = mean * alpha, std * alpha, content * (1 - alpha)
    return norm_with_stats(content, std, mean, residual, spec, chosen)[0]


def munit_layer_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
    padding: int = 0,
    impl: str = "auto",
) -> Tensor:
    """MUNIT's layer norm (arXiv 1804.04732): (x - mean) / (std + eps) * gamma + beta, per sample over channels and
    space.

    std is unbiased and eps is added to it outside the root, so it is not torch.nn.LayerNorm. gamma, beta: (C,) or
    None. Where a sample is constant, its deviation has gradient 0. Other arguments, result and errors as in
    `instance_norm`.
    """
    check_input("munit_layer_norm", x, per_plane=False)
    channels = (x.shape[1],)
    check_matches("gamma", gamma, channels, x, any_float=True)
    check_matches("beta", beta, channels, x, any_float=True)
    spec = as_spec(LAYER_STD, x, eps, 0.0, activation, negative_slope, residual, padding)
    chosen = backends.choose(impl, x, gamma, beta, residual, names=("x", "gamma", "beta", "residual"))
    return norm_with_stats(x, gamma, beta, residual, spec, chosen)[0]
