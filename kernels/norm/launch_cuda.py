"""Tensors to addresses and plans for the CUDA kernels (csrc/cuda/norm). No autograd, no checks of arguments.

A plan holds the launches of all calls with one shape, layout, dtype and set of options; a call looks its plan up,
allocates its results and hands over addresses. Launches go to the current stream, nothing is copied to the host and all
memory comes from torch: safe inside CUDA graphs once each plan has run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from kernels import _cuda
from kernels._cuda import DTYPE_CODES, DTYPES, Grid, Launch
from kernels._layout import dense, is_channels_last
from kernels._native import pointer
from kernels.norm.cut_cuda import THREADS, Cut, Shape, cut, vector
from kernels.norm.spec import LAYER_STD, Spec, new_output, new_stats

Tensor = torch.Tensor

RESIDUAL_STRIDES = ("residual_n", "residual_c", "residual_h", "residual_w")
NO_RESIDUAL, DENSE, STRIDED = 0, 1, 2  # as in csrc/cuda/norm/output.cuh

HELD = True  # False: two sweeps whatever the size (tests)


class Plan(NamedTuple):
    held: bool
    launches: tuple[Launch, ...]
    partials: int  # float32 elements of scratch memory
    sums: int
    in_apply: bool  # whether the second sweep merges partials itself


_plans: _cuda.Plans[Plan] = _cuda.Plans()


# ---- what a call is made of ------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    """x's sizes, and the layout of all maps."""

    shape: torch.Size
    dtype: torch.dtype
    index: int
    channels_last: bool


def _parameter(p: Tensor | None) -> tuple[Tensor | None, int, int]:
    """scale or shift, its elements from sample to sample, and its dtype's code. Kernels read any dtype, and columns of
    a wider matrix in place."""
    if p is None:
        return None, 0, 0
    if p.stride(-1) != 1:
        p = p.contiguous()
    return p, p.stride(0) if p.dim() == 2 else 0, DTYPE_CODES[p.dtype]


def _residual(residual: Tensor | None, x: Tensor, channels_last: bool) -> tuple[Tensor | None, int, tuple]:
    """The residual, how it lies, and its strides. The inside of a padded map is read where it is, and so is a map of
    the other memory format where x is contiguous."""
    if residual is None:
        return None, NO_RESIDUAL, (0, 0, 0, 0)
    strides = residual.stride()
    if strides == x.stride():
        return residual, DENSE, (0, 0, 0, 0)
    if residual.dim() == 4 and (not channels_last or strides[1] == 1):
        return residual, STRIDED, strides
    return dense(residual, channels_last), DENSE, (0, 0, 0, 0)


def _numbers(p: _Problem, spec: Spec, c: Cut, **more: Any) -> dict[str, Any]:
    n, channels = p.shape[:2]
    length = math.prod(p.shape[2:])
    height, width = p.shape[2:] if len(p.shape) == 4 else (1, length)
    group = channels if spec.kind == LAYER_STD else 1
    numbers = {
        "length": length,
        "out_length": (height + 2 * spec.padding) * (width + 2 * spec.padding) if spec.padding else length,
        "planes": n * channels,
        "channels": channels,
        "height": height,
        "width": width,
        "padding": spec.padding,
        "log_columns": c.log_columns,
        "span": c.span,
        "chunks": c.pieces,
        "group": group,
        "kind": spec.kind,
        "count": float(group * length),
        "eps": spec.eps,
        "offset": spec.offset,
        "slope": spec.slope,
    }
    options = ("scale_n", "shift_n", "scale_dtype", "shift_dtype", *RESIDUAL_STRIDES)
    return dict.fromkeys(options, 0) | numbers | more


def _cut(p: _Problem, spec: Spec, alignment: int, backward: bool) -> Cut:
    n, c = p.shape[:2]
    length = math.prod(p.shape[2:])
    written = math.prod(size + 2 * spec.padding for size in p.shape[2:])
    if written >= 2**31 - 2**20:
        raise ValueError(f"x: got planes of {length} elements, {written} padded, want less than 2^31 on CUDA")
    shape = Shape(n, c, length, p.dtype.itemsize, p.channels_last, alignment, spec.kind)
    return cut(shape, _cuda.device(p.index), backward=backward, padded=spec.padding > 0, held=HELD)


def _types(p: _Problem, c: Cut) -> str:
    return f"{DTYPES[p.dtype]}, {c.vector}, {str(p.channels_last).lower()}"


class _Launches:
    """The launches of a plan, as they are described."""

    def __init__(self, p: _Problem, c: Cut, header: str, numbers: dict[str, Any]) -> None:
        self._given, self._cut, self._header, self._numbers = p, c, header, numbers
        self.made: list[Launch] = []

    def add(self, name: str, template: str, blocks: int, threads: int, cluster: int = 1, header: str = "") -> None:
        function = f"norms::{name}<{template}>" if template else f"norms::{name}"
        grid = Grid(blocks, threads, cluster, self._cut.shared)
        header = header or self._header
        self.made.append(_cuda.launch("norm", header, function, THREADS, self._given.index, grid, self._numbers))


# ---- forward ---------------------------------------------------------------------------------------------------------


def _plan_forward(p: _Problem, spec: Spec, mode: int, alignment: int, alone: bool = False, **options: Any) -> Plan:
    """alone: statistics, no y."""
    c = _cut(p, spec, alignment, backward=False)
    numbers = _numbers(p, spec, c, **options)
    wide = c.vector  # of an access to y
    if spec.padding and not p.channels_last:
        wide = vector(numbers["out_length"], p.dtype.itemsize, alignment)
    emit = f"{spec.activation}, {str(spec.padding > 0).lower()}, {mode}, {wide}"
    launches = _Launches(p, c, "forward", numbers)
    blocks = c.groups * c.pieces
    if c.held:
        launches.add("forward_held", f"{_types(p, c)}, {emit}, {c.per}", blocks, c.threads, c.pieces)
        return Plan(True, tuple(launches.made), 0, 0, False)
    in_apply = c.merge and spec.kind != LAYER_STD and not alone
    launches.add("chunk_moments", f"{_types(p, c)}, {c.per}", blocks, c.threads, header="moments")
    if not in_apply:
        launches.add("combine_moments", "", numbers["planes"] // numbers["group"], 256, header="moments")
    if not alone:
        launches.add("forward_apply", f"{_types(p, c)}, {emit}, {c.per}", blocks, c.threads)
    return Plan(False, tuple(launches.made), 3 * numbers["planes"] * c.pieces, 0, in_apply)


def _run_forward(plan: Plan, x: Tensor, scale: int, shift: int, residual: int, y: int, stats: Tensor) -> None:
    stream = _cuda.stream(x.get_device())
    to = stats.data_ptr()
    if plan.held:
        plan.launches[0](stream, x.data_ptr(), scale, shift, residual, 0, 0, 0, y, 0, 0, to, 0, 0, 0, 0)
        return
    partials = torch.empty(plan.partials, dtype=torch.float32, device=x.device)
    for launch in plan.launches:
        apply = y and launch is plan.launches[-1]
        given = 0 if apply and not plan.in_apply else partials.data_ptr()
        launch(stream, x.data_ptr(), scale, shift, residual, 0, 0, 0, y, 0, 0, to, given, 0, 0, 0)


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    spec: Spec,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, stats). `out`: write there instead of into new memory (benchmarks)."""
    channels_last = is_channels_last(x)
    x = dense(x, channels_last)
    y = new_output(x, spec.padding, channels_last) if out is None else out
    stats = new_stats(x)
    if y.numel() == 0:
        return y, stats
    scale, scale_n, scale_dtype = _parameter(scale)
    shift, shift_n, shift_dtype = _parameter(shift)
    residual, mode, strides = _residual(residual, x, channels_last)
    at, to, other = x.data_ptr(), y.data_ptr(), pointer(residual)
    alignment = (at | to | (other if mode == DENSE or channels_last else 0)) & 15
    p = _Problem(x.shape, x.dtype, x.get_device(), channels_last)
    key = (p, spec, mode, alignment, strides, scale_n, scale_dtype, shift_n, shift_dtype)
    plan = _plans.get(key)
    if plan is None:
        if channels_last:
            for stride in (strides[0], *strides[2:]):
                alignment |= stride * x.element_size()
        options: dict[str, Any] = dict(zip(RESIDUAL_STRIDES, strides))
        options |= {"scale_n": scale_n, "scale_dtype": scale_dtype, "shift_n": shift_n, "shift_dtype": shift_dtype}
        plan = _plans[key] = _plan_forward(p, spec, mode, alignment, **options)
    _run_forward(plan, x, pointer(scale), pointer(shift), other, to, stats)
    return y, stats


def moments(x: Tensor, kind: int, eps: float) -> Tensor:
    """Statistics (4, N, C) of every plane."""
    channels_last = is_channels_last(x)
    x = dense(x, channels_last)
    stats = new_stats(x)
    if not x.numel():
        return stats
    p, alignment = _Problem(x.shape, x.dtype, x.get_device(), channels_last), x.data_ptr() & 15
    key = ("moments", p, kind, eps, alignment)
    plan = _plans.get(key)
    if plan is None:
        spec = Spec(kind, eps, 0.0, 0, 0.0, 0)
        plan = _plans[key] = _plan_forward(p, spec, NO_RESIDUAL, alignment, alone=True)
    _run_forward(plan, x, 0, 0, 0, 0, stats)
    return stats


# ---- backward --------------------------------------------------------------------------------------------------------


def _plan_backward(p: _Problem, spec: Spec, alignment: int, **options: Any) -> Plan:
    c = _cut(p, spec, alignment, backward=True)
    numbers = _numbers(p, spec, c, **options)
    template = f"{_types(p, c)}, {spec.activation}, {str(spec.padding > 0).lower()}, {c.per}"
    launches = _Launches(p, c, "backward", numbers)
    blocks = c.groups * c.pieces
    if c.held:
        launches.add("backward_held", template, blocks, c.threads, c.pieces)
        return Plan(True, tuple(launches.made), 0, 0, False)
    in_apply = c.merge and spec.kind != LAYER_STD
    groups = numbers["planes"] // numbers["group"]
    launches.add("chunk_sums", template, blocks, c.threads)
    if not in_apply:
        launches.add("combine_sums", "", groups, 256)
    launches.add("backward_apply", template, blocks, c.threads)
    return Plan(False, tuple(launches.made), 2 * numbers["planes"] * c.pieces, 0 if in_apply else 2 * groups, in_apply)


def backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    stats: Tensor,
    need_residual: bool,
    spec: Spec,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, scale, shift (float32, None where not given) and of the residual (None unless asked for: only
    with padding, since without it that gradient is `grad`)."""
    channels_last = is_channels_last(x)
    x, grad = dense(x, channels_last), dense(grad, channels_last)
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if need_residual else None
    if x.numel() == 0:
        dscale, dshift = (None if t is None else torch.zeros_like(t, dtype=torch.float32) for t in (scale, shift))
        return dx, dscale, dshift, dresidual
    # kernels write what each plane contributes; parameters of all samples add theirs up below
    n, c = x.shape[:2]
    dscale, dshift = (
        None if t is None else torch.empty((c,) if n == 1 == t.dim() else (n, c), dtype=torch.float32, device=x.device)
        for t in (scale, shift)
    )
    scale_in, scale_n, scale_dtype = _parameter(scale)
    shift_in, shift_n, shift_dtype = _parameter(shift)
    alignment = (x.data_ptr() | grad.data_ptr()) & 15
    p = _Problem(x.shape, x.dtype, x.get_device(), channels_last)
    key = ("backward", p, spec, alignment, scale_n, scale_dtype, shift_n, shift_dtype)
    plan = _plans.get(key)
    if plan is None:
        options = {"scale_n": scale_n, "scale_dtype": scale_dtype, "shift_n": shift_n, "shift_dtype": shift_dtype}
        plan = _plans[key] = _plan_backward(p, spec, alignment, **options)
    stream = _cuda.stream(p.index)
    before = (x.data_ptr(), pointer(scale_in), pointer(shift_in), 0, grad.data_ptr(), 0, 0, 0)
    before = (*before, dx.data_ptr(), pointer(dresidual), stats.data_ptr())
    parameters = (pointer(dscale), pointer(dshift))
    if plan.held:
        plan.launches[0](stream, *before, 0, 0, *parameters)
    else:
        scratch = torch.empty(plan.partials + plan.sums, dtype=torch.float32, device=x.device)
        partials, sums = scratch.data_ptr(), scratch.data_ptr() + 4 * plan.partials
        for launch in plan.launches:
            last = launch is plan.launches[-1]
            launch(stream, *before, partials if plan.in_apply or not last else 0, sums, *parameters)
    return dx, _like(dscale, scale), _like(dshift, shift), dresidual


def _like(planes: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """(N, C) sums of planes in the parameter's shape, which they have already where there is one sample."""
    return planes if planes is None or parameter is None or planes.dim() == parameter.dim() else planes.sum(0)


def moments_backward(grad_mean: Tensor, grad_std: Tensor, x: Tensor, stats: Tensor, kind: int) -> Tensor:
    """Gradient of x from those of its planes' mean and sqrt(unbiased variance + eps), each (N, C)."""
    channels_last = is_channels_last(x)
    x = dense(x, channels_last)
    dx = torch.empty_like(x)
    if not x.numel():
        return dx
    grad_mean, grad_std = (g.to(torch.float32).contiguous() for g in (grad_mean, grad_std))
    p, alignment = _Problem(x.shape, x.dtype, x.get_device(), channels_last), x.data_ptr() & 15
    key = ("moments_backward", p, kind, alignment)
    plan = _plans.get(key)
    if plan is None:
        spec = Spec(kind, 0.0, 0.0, 0, 0.0, 0)
        # no sums: as small pieces as fill the device
        c = _cut(p, spec._replace(kind=LAYER_STD), alignment, backward=True)
        launches = _Launches(p, c, "backward", _numbers(p, spec, c))
        launches.add("moments_backward", f"{_types(p, c)}, {c.per}", c.groups * c.pieces, c.threads)
        plan = _plans[key] = Plan(False, tuple(launches.made), 0, 0, False)
    given = (grad_mean.data_ptr(), grad_std.data_ptr(), 0, dx.data_ptr(), 0, stats.data_ptr(), 0, 0, 0, 0)
    plan.launches[0](_cuda.stream(p.index), x.data_ptr(), 0, 0, 0, 0, *given)
    return dx
