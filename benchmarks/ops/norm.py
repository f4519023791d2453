"""The contestants: each the same arithmetic as one case, written the way its users write it.

A provider builds function(*tensors) -> y for a row, or None where it does not exist or is not valid. Ratios are always
taken against `FUSED`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.ops.norm_cases import Case, Row, fused
from kernels import backends
from kernels._layout import is_channels_last
from kernels.norm.spec import ACTIVATIONS, INSTANCE, INSTANCE_UNBIASED, LAYER_STD, Spec, new_output

Tensor = torch.Tensor
Function = Callable[..., Tensor]
EPS = 1e-5
FUSED, INTO = "fused", "fused, given output"


class Provider(NamedTuple):
    name: str
    build: Callable[[Row], Function | None]
    about: str
    nchw: bool = False  # takes NCHW tensors also in the channels_last rows
    compiles: bool = False


# ---- norms as the papers' code computes them ------------------------------------------------------------------------


def _munit_adain(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Samples folded into channels, one batch norm in training mode over them, dummy running statistics."""
    n, c, h, w = x.shape
    mean, var = x.new_zeros(n * c), x.new_ones(n * c)
    folded = x.contiguous().view(1, n * c, h, w)
    return F.batch_norm(folded, mean, var, scale.flatten(), shift.flatten(), True, 0.1, EPS).view(n, c, h, w)


def _mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    planes = x.flatten(2)
    shape = (*x.shape[:2], 1, 1)
    return planes.mean(2).view(shape), (planes.var(2) + EPS).sqrt().view(shape)


def _transfer(content: Tensor, style: Tensor) -> Tensor:
    mean, std = _mean_std(content)
    style_mean, style_std = _mean_std(style)
    return (content - mean) / std * style_std + style_mean


def _munit_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    samples = x.flatten(1)
    mean, std = samples.mean(1).view(-1, 1, 1, 1), samples.std(1).view(-1, 1, 1, 1)
    x = (x - mean) / (std + EPS)
    return x * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)


PUBLISHED: dict[str, Function] = {
    "instance_norm": F.instance_norm,
    "adaptive_instance_norm": _munit_adain,
    "adain": _transfer,
    "munit_layer_norm": _munit_layer_norm,
}


# ---- norms as a careful user writes them with stock operators --------------------------------------------------------


def _batch_norm_per_sample(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """Instance norm of one sample is its batch norm, and batch norm keeps channels_last."""
    samples = [
        F.batch_norm(
            x[i : i + 1],
            None,
            None,
            None if scale is None else scale[i],
            None if shift is None else shift[i],
            training=True,
            eps=eps,
        )
        for i in range(len(x))
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _group_norm_per_plane(
    x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """One group per plane; a style per sample becomes an affine once samples are folded into channels."""
    n, c, h, w = x.shape
    if scale is None or shift is None:
        return F.group_norm(x, c, eps=eps)
    return F.group_norm(x.view(1, n * c, h, w), n * c, scale.flatten(), shift.flatten(), eps).view(n, c, h, w)


def _centred(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean, mean, unbiased variance): several times faster on a CPU than torch.var, and as exact."""
    mean = x.mean(dims, keepdim=True)
    d = x - mean
    return d, mean, d.square().sum(dims, keepdim=True) / (x.numel() // mean.numel() - 1)


def _careful_transfer(content: Tensor, style: Tensor) -> Tensor:
    """The content in one stock norm whose affine is the style's statistics. Stock norms divide by the biased variance,
    so eps and scale carry the ratio of both."""
    _, mean, var = _centred(style, (2, 3))
    unbiased = 1 - 1 / content[0, 0].numel()
    scale, shift = ((var + EPS) * unbiased).sqrt().flatten(1), mean.flatten(1)
    norm = _group_norm_per_plane if content.is_contiguous() else _batch_norm_per_sample
    return norm(content, scale, shift, EPS * unbiased)


def _careful_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """One multiply-add behind the statistics."""
    d, _, var = _centred(x, (1, 2, 3))
    return torch.addcmul(beta.view(1, -1, 1, 1), d, gamma.view(1, -1, 1, 1) / (var.sqrt() + EPS))


# ---- from a norm to the whole case --------------------------------------------------------------------------------


def stock(case: Case, norm: Function, inplace: bool) -> Function:
    """`norm`, then activation, residual and padding as separate stock operators."""
    activation, padding = case.op.activation, (case.padding,) * 4

    def run(*tensors: Tensor) -> Tensor:
        inputs, residual = (tensors[:-1], tensors[-1]) if case.op.residual else (tensors, None)
        y = norm(*inputs)
        if activation == "relu":
            y = F.relu(y, inplace=inplace)
        elif activation == "leaky_relu":
            y = F.leaky_relu(y, 0.2, inplace=inplace)
        if residual is not None:
            y = residual + y
        return F.pad(y, padding, mode="reflect") if case.padding else y

    return run


def _published(row: Row) -> Function:
    return stock(row.case, PUBLISHED[row.case.op.kernel], inplace=True)


def _not_in_place(row: Row) -> Function | None:
    if row.case.op.activation == "none":
        return None
    return stock(row.case, PUBLISHED[row.case.op.kernel], inplace=False)


def _published_nchw(row: Row) -> Function | None:
    return _published(row) if row.channels_last else None


def _compiled(row: Row) -> Function | None:
    if row.mode not in row.case.compiled:
        return None
    torch.compiler.reset()  # one graph at a time: neither recompile limits nor shapes that turn dynamic
    # Not in place: compiled in place, a leaky ReLU's backward falls into the same bool mask as ReLU's, 15 times slower.
    return torch.compile(stock(row.case, PUBLISHED[row.case.op.kernel], inplace=False), dynamic=False)


def _group_norm(row: Row) -> Function | None:
    if row.channels_last or row.case.op.kernel not in ("instance_norm", "adaptive_instance_norm"):
        return None
    return stock(row.case, _group_norm_per_plane, inplace=False)


def _careful(row: Row) -> Function | None:
    kernel = row.case.op.kernel
    if kernel == "adain":
        return _careful_transfer
    if kernel == "munit_layer_norm":
        return stock(row.case, _careful_layer_norm, inplace=False)
    return stock(row.case, _batch_norm_per_sample, inplace=False) if row.channels_last else None


def _fused(row: Row) -> Function:
    return fused(row.case)


def _into_output(row: Row) -> Function | None:
    """The launcher below the public function, writing into memory that exists already: what a copy also gets."""
    if row.backward:
        return None
    case, outputs = row.case, {}
    form = {"munit_layer_norm": LAYER_STD, "adain": INSTANCE_UNBIASED}.get(case.op.kernel, INSTANCE)
    spec = Spec(form, EPS, 0.0, ACTIVATIONS.index(case.op.activation), 0.2, case.padding)

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        out = outputs.get(id(x))
        if out is None:
            out = outputs[id(x)] = new_output(x, spec.padding, is_channels_last(x))
        chosen = backends.choose("auto", x)
        if chosen == "reference":
            raise backends.BackendUnavailable("the reference has no launcher")
        launch = backends.launcher("norm", chosen)
        scale, shift, residual = None, None, None
        if case.op.kernel == "adain":
            stats = launch.moments(rest[0], form, EPS)
            scale, shift = stats[3].reciprocal(), stats[0]
        elif case.op.residual:
            (residual,) = rest
        elif rest:
            scale, shift = rest
        launch.forward(x, scale, shift, residual, spec, out=out)
        return out

    return run


PROVIDERS = (
    Provider(
        "eager",
        _published,
        "stock operators as the published code calls them: F.instance_norm and an in-place (leaky) ReLU (CUT), AdaIN "
        "as a batch norm over samples folded into channels (MUNIT), calc_mean_std (AdaIN-style), MUNIT's layer norm",
    ),
    Provider("eager, not in place", _not_in_place, "the same with an activation that writes a new tensor"),
    Provider(
        "eager NCHW", _published_nchw, "in channels_last rows: `eager` on contiguous copies of the inputs", nchw=True
    ),
    Provider(
        "torch.compile",
        _compiled,
        "`eager`, not in place, compiled in the default mode, caches cold; compiling is reported, not counted",
        compiles=True,
    ),
    Provider(
        "group_norm(C)",
        _group_norm,
        "F.group_norm with one group per plane, contiguous input only: on channels_last its CPU variance is wrong for "
        "planes with a large mean",
    ),
    Provider(
        "careful python",
        _careful,
        "the best of stock operators: batch norm per sample (keeps channels_last), the transfer as one stock norm with "
        "the style's statistics as its affine, layer norm by one addcmul, no in-place activation; for instance norm "
        "and AdaIN on contiguous planes group_norm(C) is that",
    ),
    Provider(FUSED, _fused, 'this library, impl="auto"'),
    Provider(INTO, _into_output, "this library's forward into an existing tensor, below autograd (forward rows only)"),
)
