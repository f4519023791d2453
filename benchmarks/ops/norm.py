"""The norm room as a suite: the same arithmetic as one call of this library, written the way its users write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.engine.suite import Suite
from benchmarks.engine.work import EAGER, FUSED, INTO, Contestant, Function, Work
from benchmarks.ops.norm_cases import OPERATORS, Case, cases, describe, fused, make_inputs, necessary_bytes
from kernels import backends
from kernels._layout import is_channels_last
from kernels.norm.spec import ACTIVATIONS, INSTANCE, INSTANCE_UNBIASED, LAYER_STD, Spec, new_output

Tensor = torch.Tensor
Norm = Callable[..., Tensor]
EPS = 1e-5
NOT_IN_PLACE, NCHW, COMPILE, GROUP_NORM, CAREFUL = (
    "eager, not in place",
    "eager NCHW",
    "torch.compile",
    "group_norm(C)",
    "careful python",
)
ABOUT = {
    EAGER: "stock operators as the published code calls them: F.instance_norm and an in-place (leaky) ReLU (CUT), "
    "AdaIN as a batch norm over samples folded into channels (MUNIT), calc_mean_std (AdaIN-style), MUNIT's layer norm",
    NOT_IN_PLACE: "the same with an activation that writes a new tensor",
    NCHW: "in channels_last rows (of volumes: channels_last_3d): `eager` on contiguous copies of the inputs",
    COMPILE: "`eager`, not in place, compiled in the default mode, caches cold; compiling is reported, not counted",
    GROUP_NORM: "F.group_norm with one group per plane, contiguous input only: on channels_last its CPU variance is "
    "wrong for planes with a large mean",
    CAREFUL: "the best of stock operators: batch norm per sample (keeps channels_last), the transfer as one stock norm "
    "with the style's statistics as its affine, layer norm by one addcmul, no in-place activation; for instance norm "
    "and AdaIN on contiguous planes group_norm(C) is that",
    FUSED: 'this library, impl="auto"',
    INTO: "this library's forward into an existing tensor, below autograd (forward rows only)",
}
NOTES = {
    "cpu": (
        "CPU figures: wall time, inputs as warm as the caches keep them between calls. They say nothing about a GPU.",
        "torch.compile's ReLU backward saves a bool mask whose loads and stores are very slow on CPUs with AVX-512 "
        "(torch 2.13): fwd+bwd rows with ReLU overstate the gain over it; compare leaky ReLU and norm + residual.",
        "eager at N = 1 with channels_last: torch 2.13's instance norm returns a wrong gradient when the arriving one "
        "is channels_last. Where the gate meets that, the cell says FAIL, and `eager NCHW` is the baseline.",
        "Large tensors: where the JSON says freed_memory_kept (glibc), kernels.keep_freed_memory() was in force for "
        f"every contestant. Elsewhere each allocation is paid in page faults, and `{INTO}` shows the kernel without.",
        "Peak memory: sum of allocations minus releases of torch's CPU allocator during one call, by the profiler.",
    ),
    "cuda": (
        "GPU figures: device time per call, of a CUDA graph behind a write to twice the L2 cache. Wall time "
        "per eager call is in the JSON (wall_us_per_call) and in its own column.",
        "Peak memory: max_memory_allocated during one call.",
    ),
}


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


PUBLISHED: dict[str, Norm] = {
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
    if scale is None or shift is None:
        return F.group_norm(x, x.shape[1], eps=eps)
    n, c, h, w = x.shape
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


def stock(case: Case, norm: Norm, inplace: bool) -> Function:
    """`norm`, then activation, residual and padding as separate stock operators."""
    activation, padding = case.op.activation, (case.padding,) * 4

    def run(*tensors: Tensor) -> list[Tensor]:
        inputs, residual = (tensors[:-1], tensors[-1]) if case.op.residual else (tensors, None)
        y = norm(*inputs)
        if activation == "relu":
            y = F.relu(y, inplace=inplace)
        elif activation == "leaky_relu":
            y = F.leaky_relu(y, 0.2, inplace=inplace)
        if residual is not None:
            y = residual + y
        return [F.pad(y, padding, mode="reflect") if case.padding else y]

    return run


def _careful(case: Case) -> Norm | None:
    if case.op.kernel == "adain":
        return _careful_transfer
    if case.op.kernel == "munit_layer_norm":
        return _careful_layer_norm
    return _batch_norm_per_sample if case.channels_last else None


def into_output(case: Case) -> Function:
    """The launcher below the public function, writing into memory that exists already: what a copy also gets."""
    outputs: dict[int, Tensor] = {}
    form = {"munit_layer_norm": LAYER_STD, "adain": INSTANCE_UNBIASED}.get(case.op.kernel, INSTANCE)
    spec = Spec(form, EPS, 0.0, ACTIVATIONS.index(case.op.activation), 0.2, case.padding)

    def run(x: Tensor, *rest: Tensor) -> list[Tensor]:
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
        return [out]

    return run


def contestants(case: Case) -> dict[str, Contestant]:
    """Those that exist and are valid in this case, in the order of ABOUT."""
    published = PUBLISHED[case.op.kernel]
    eager, apart = (stock(case, published, inplace) for inplace in (True, False))
    found = {EAGER: Contestant(eager)}
    if case.op.activation != "none":
        found[NOT_IN_PLACE] = Contestant(apart)
    if case.channels_last:
        found[NCHW] = Contestant(eager, contiguous=True)
    # Not in place: compiled in place, a leaky ReLU's backward falls into the same bool mask as ReLU's, 15 times slower.
    found[COMPILE] = Contestant(apart, case.compiled, compiles=True)
    if not case.channels_last and case.op.kernel in ("instance_norm", "adaptive_instance_norm"):
        found[GROUP_NORM] = Contestant(stock(case, _group_norm_per_plane, inplace=False))
    careful = _careful(case)
    if careful:
        found[CAREFUL] = Contestant(stock(case, careful, inplace=False))
    return found | {FUSED: Contestant(fused(case)), INTO: Contestant(into_output(case), modes=(False,))}


def work(case: Case, device: torch.device) -> Work:
    tensors, grad = make_inputs(case, device)
    names = ("y", *(f"grad {name}" for name in case.op.tensors))
    return Work(tensors, tuple(range(len(tensors))), (grad,), contestants(case), names)


SUITE = Suite(
    name="ops",
    title="Fused operators",
    operators=tuple(op.name for op in OPERATORS),
    about=ABOUT,
    legend="`% of copy`: time of a copy that moves the row's necessary bytes, measured in the same rounds, over the "
    "row's time. p1, p3: pixels of reflection padding on every side.",
    column=("% of copy", "percent_of_copy"),
    groups=(("mode",), ("mode", "dtype", "memory_format")),
    cases=cases,
    work=work,
    describe=describe,
    necessary_bytes=necessary_bytes,
    notes=NOTES,
)
