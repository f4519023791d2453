"""Tensors to addresses and sizes for the C++ operators (csrc/cpu/norm). No autograd, no checks of arguments."""

from __future__ import annotations

import math

import torch

from kernels._layout import dense, is_channels_last
from kernels._native import DTYPE_CODES, load, pointer
from kernels.norm.spec import Spec, new_output, new_stats

# The arguments of each C++ function, in order, by the names of csrc/cpu/norm/bind.cpp; compared when the library loads.
_PROBLEM = "x stats n c h w channels_last dtype kind"  # as _problem returns them
_OPTIONS = "scale shift per_sample offset activation slope pad"  # as _options does
_RESIDUAL = "residual residual_n residual_c residual_h"  # as _residual does
ARGUMENTS = {
    "norm_forward": f"{_PROBLEM} {_OPTIONS} eps y {_RESIDUAL}",
    "norm_backward": f"{_PROBLEM} {_OPTIONS} grad grad_x grad_residual grad_scale grad_shift",
    "moments": f"{_PROBLEM} eps",
    "moments_backward": f"{_PROBLEM} grad_mean grad_std grad_x",
}


def _problem(x: torch.Tensor, stats: torch.Tensor, kind: int, channels_last: bool) -> tuple:
    shape = x.shape
    h, w = (shape[2], shape[3]) if len(shape) == 4 else (1, math.prod(shape[2:]))
    return x.data_ptr(), stats.data_ptr(), shape[0], shape[1], h, w, channels_last, DTYPE_CODES[x.dtype], kind


def _float32(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


def _options(scale: torch.Tensor | None, shift: torch.Tensor | None, spec: Spec) -> tuple:
    given = scale if scale is not None else shift
    per_sample = given is not None and given.dim() == 2
    return pointer(scale), pointer(shift), per_sample, spec.offset, spec.activation, spec.slope, spec.padding


def _residual(residual: torch.Tensor | None, channels_last: bool) -> tuple[torch.Tensor | None, tuple]:
    """The residual and its strides (n, c, row). Rows must be dense; rows themselves may lie apart, so that the inside
    of a padded map is read where it is."""
    if residual is None:
        return None, (0, 0, 0, 0)
    if residual.dim() != 4:
        residual = dense(residual, channels_last)
        n, c = residual.stride(0), 0 if channels_last else residual.stride(1)
        length = math.prod(residual.shape[2:])
        return residual, (residual.data_ptr(), n, c, length * residual.shape[1] if channels_last else length)
    sn, sc, sh, sw = residual.stride()
    channels = residual.shape[1]
    if not ((sc == 1 and sw == channels) if channels_last else sw == 1):
        residual = dense(residual, channels_last)
        sn, sc, sh, sw = residual.stride()
    return residual, (residual.data_ptr(), sn, sc, sh)


def forward(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    residual: torch.Tensor | None,
    spec: Spec,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, stats). `out`: write there instead of into new memory (benchmarks)."""
    channels_last = is_channels_last(x)
    x = dense(x, channels_last)
    y = new_output(x, spec.padding, channels_last) if out is None else out
    stats = new_stats(x)
    if y.numel() == 0:
        return y, stats
    scale, shift = _float32(scale), _float32(shift)
    residual, strides = _residual(residual, channels_last)
    load().norm_forward(
        *_problem(x, stats, spec.kind, channels_last),
        *_options(scale, shift, spec),
        spec.eps,
        y.data_ptr(),
        *strides,
    )
    return y, stats


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    stats: torch.Tensor,
    need_residual: bool,
    spec: Spec,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of x, scale, shift (float32, None where not given) and of the residual (None unless asked for: only
    with padding, since without it that gradient is `grad`)."""
    channels_last = is_channels_last(x)
    x, grad = dense(x, channels_last), dense(grad, channels_last)
    grad_x = torch.empty_like(x)
    scale, shift = _float32(scale), _float32(shift)
    grad_scale = None if scale is None else torch.empty_like(scale)
    grad_shift = None if shift is None else torch.empty_like(shift)
    grad_residual = torch.empty_like(x) if need_residual else None
    if x.numel() == 0:
        for empty in (grad_scale, grad_shift):
            if empty is not None:
                empty.zero_()
        return grad_x, grad_scale, grad_shift, grad_residual
    load().norm_backward(
        *_problem(x, stats, spec.kind, channels_last),
        *_options(scale, shift, spec),
        grad.data_ptr(),
        grad_x.data_ptr(),
        pointer(grad_residual),
        pointer(grad_scale),
        pointer(grad_shift),
    )
    return grad_x, grad_scale, grad_shift, grad_residual


def moments(x: torch.Tensor, kind: int, eps: float) -> torch.Tensor:
    """Statistics (4, N, C) of every plane."""
    channels_last = is_channels_last(x)
    x = dense(x, channels_last)
    stats = new_stats(x)
    if x.numel():
        load().moments(*_problem(x, stats, kind, channels_last), eps)
    return stats


def moments_backward(
    grad_mean: torch.Tensor, grad_std: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, kind: int
) -> torch.Tensor:
    """Gradient of x from those of its planes' mean and sqrt(unbiased variance + eps), each (N, C)."""
    channels_last = is_channels_last(x)
    x = dense(x, channels_last)
    grad_x = torch.empty_like(x)
    grad_mean, grad_std = (g.to(torch.float32).contiguous() for g in (grad_mean, grad_std))
    if x.numel():
        load().moments_backward(
            *_problem(x, stats, kind, channels_last), grad_mean.data_ptr(), grad_std.data_ptr(), grad_x.data_ptr()
        )
    return grad_x
