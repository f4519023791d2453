"""Every operator on maps (norm, patches, resample) alike: its values, gradients and second derivatives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch

import kernels

Tensor = torch.Tensor


class Operator(NamedTuple):
    names: tuple[str, ...]  # of its inputs: x, and parameters by what they are shaped as
    call: Callable  # (impl, *inputs) -> tensor or list of tensors


IDS = torch.tensor([3, 7, 3, 0, 11])


def _tap(impl: str, x: Tensor) -> list[Tensor]:
    return list(kernels.tap_patches(x, IDS, impl=impl))


OPERATORS = {
    "instance_norm": Operator(
        ("x", "channels", "channels", "map"),
        lambda impl, x, w, b, r: kernels.instance_norm(x, w, b, activation="relu", residual=r, impl=impl),
    ),
    "instance_norm, padded": Operator(
        ("x", "channels", "channels", "map"),
        lambda impl, x, w, b, r: kernels.instance_norm(x, w, b, residual=r, padding=1, impl=impl),
    ),
    "adaptive_instance_norm": Operator(
        ("x", "planes", "planes"),
        lambda impl, x, s, t: kernels.adaptive_instance_norm(x, s, t, unit_offset=True, padding=2, impl=impl),
    ),
    "adain": Operator(("x", "style"), lambda impl, x, s: kernels.adain(x, s, alpha=0.5, impl=impl)),
    "munit_layer_norm": Operator(
        ("x", "channels", "channels"),
        lambda impl, x, w, b: kernels.munit_layer_norm(x, w, b, activation="leaky_relu", padding=1, impl=impl),
    ),
    "blur_downsample": Operator(("x",), lambda impl, x: kernels.blur_downsample(x, impl=impl)),
    "blur_downsample, 4": Operator(("x",), lambda impl, x: kernels.blur_downsample(x, filter_size=4, impl=impl)),
    "blur_upsample": Operator(("x",), lambda impl, x: kernels.blur_upsample(x, impl=impl)),
    "reflection_pad2d": Operator(("x",), lambda impl, x: kernels.reflection_pad2d(x, (1, 2, 0, 3), impl=impl)),
    "sample_patches": Operator(("x",), lambda impl, x: kernels.sample_patches([x], ids=[IDS], impl=impl)[0]),
    "tap_patches": Operator(("x",), _tap),
}
PASSES_ON = ("tap_patches", "sample_patches")  # the first gives x itself, the second no map

EMPTY = [(0, 3, 4, 5), (2, 0, 4, 5), (0, 0, 4, 5)]


def randn(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def inputs_of(operator: Operator, x: Tensor) -> list[Tensor]:
    """x, and parameters for it, all leaves."""
    n, c = x.shape[:2]
    shapes = {"channels": (c,), "planes": (n, c), "map": tuple(x.shape), "style": (n, c, 3, 6)}
    found = [x]
    for seed, name in enumerate(operator.names[1:], 1):
        dtype = x.dtype if name in ("map", "style") else torch.float32
        found.append(randn(*shapes[name], seed=seed, dtype=dtype, device=x.device))
    return [t.detach().requires_grad_() for t in found]


def listed(results: Tensor | list[Tensor]) -> list[Tensor]:
    return list(results) if isinstance(results, (list, tuple)) else [results]


def derivatives(
    operator: Operator, x: Tensor, impl: str, around: contextlib.AbstractContextManager | None = None
) -> dict[str, list[Tensor]]:
    """The operator's values, the gradients of their weighted sum, taken alone and with a graph, and those of a penalty
    on that gradient; `around`: a context in which all of it happens."""
    with around or contextlib.nullcontext():
        given = inputs_of(operator, x)
        results = listed(operator.call(impl, *given))
        weights = [randn(*r.shape, seed=5 + i, dtype=r.dtype, device=r.device) for i, r in enumerate(results)]
        alone = torch.autograd.grad(results, given, weights, retain_graph=True)
        recorded = torch.autograd.grad(results, given, weights, create_graph=True)
        # not the sum of squares: a derivative that vanishes with its input says nothing
        penalty = sum(g.float().sin().sum() for g in recorded)
        twice = torch.autograd.grad(penalty, given, allow_unused=True) if penalty.requires_grad else []
    detached = [g.detach() for g in recorded]
    return {
        "values": [r.detach() for r in results],
        "gradients": list(alone),
        "gradients with a graph": detached,
        "second derivatives": [g for g in twice if g is not None],
    }


def check_written(name: str, shape: tuple[int, ...], impl: str, device: str = "cpu") -> None:
    """Of maps without samples or channels: results of the right sizes, and where those are not empty, zeros."""
    operator = OPERATORS[name]
    if name == "munit_layer_norm" and shape[1] == 0:
        return  # refused: a sample of no elements has no statistics
    found = derivatives(operator, randn(*shape, device=device), impl)
    want = derivatives(operator, randn(*shape, device=device), "reference")
    for kind in found:
        assert [t.shape for t in found[kind]] == [t.shape for t in want[kind]], (name, kind)
        for t in found[kind]:
            assert not t.count_nonzero(), (name, kind, t)  # NaN counts


def strided(shape: tuple[int, ...], layout: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Random values so placed in memory."""
    n, c, h, w = shape
    if layout == "channels apart":
        return randn(n, 2 * c, h, w, dtype=dtype, device=device)[:, ::2]
    if layout == "channels apart, last":
        return strided((n, 2 * c, h, w), "channels_last", dtype, device)[:, ::2]
    if layout == "inside":
        return randn(n, c, h + 2, w + 3, dtype=dtype, device=device)[:, :, 1:-1, 2:-1]
    if layout == "inside, last":
        return strided((n, c, h + 2, w + 3), "channels_last", dtype, device)[:, :, 1:-1, 2:-1]
    if layout == "transposed":
        return randn(n, c, w, h, dtype=dtype, device=device).transpose(2, 3)
    if layout == "columns apart":
        return randn(n, c, h, 2 * w, dtype=dtype, device=device)[..., ::2]
    if layout == "one sample repeated":
        return randn(1, c, h, w, dtype=dtype, device=device).expand(n, -1, -1, -1)
    x = randn(n, c, h, w, dtype=dtype, device=device)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


LAYOUTS = {  # and whether results are channels last
    "contiguous": False,
    "channels_last": True,
    "channels apart": False,
    "channels apart, last": True,
    "inside": False,
    "inside, last": True,
    "transposed": False,
    "columns apart": False,
    "one sample repeated": False,
}


def check_format(name: str, layout: str, impl: str, device: str = "cpu") -> None:
    """Results are dense and in the memory order of x, and the values those of the same numbers side by side."""
    x = strided((2, 4, 6, 7), layout, device=device)
    operator = OPERATORS[name]
    with torch.no_grad():
        given = inputs_of(operator, x.contiguous())
        want = listed(operator.call("reference", *given))
        got = listed(operator.call(impl, x, *given[1:]))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        if name not in PASSES_ON:
            form = torch.channels_last if LAYOUTS[layout] else torch.contiguous_format
            assert a.is_contiguous(memory_format=form), (name, a.stride())


# ---- constant planes without eps -------------------------------------------------------------------------------------

CONSTANT = torch.tensor([[False, True, False], [True, False, False]])  # planes (N, C); of samples, the first is taken


def _x_hat(x: Tensor, constant: Tensor, dims: tuple[int, ...], unbiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x_hat, mean and deviation in float64, with 0 for x_hat and the deviation where `constant`."""
    mean = x.mean(dims, keepdim=True)
    other = torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view_as(x)
    std = torch.where(constant, other, x).var(dims, correction=int(unbiased), keepdim=True).sqrt()
    return torch.where(constant, 0.0, (x - mean) / std), mean, torch.where(constant, 0.0, std)


def _without_eps(op: str, impl: str, x: Tensor, scale: Tensor, shift: Tensor, style: Tensor) -> Tensor:
    """The operator, or for impl = "exact" its formula with 0 where 0 is divided by 0."""
    constant = CONSTANT.to(x.device)[:, :, None, None]
    if op == "adain":
        if impl != "exact":
            return kernels.adain(x, style, eps=0.0, impl=impl)
        _, mean, std = _x_hat(style, constant.flip(1), (2, 3), True)
        return _x_hat(x, constant, (2, 3), True)[0] * std + mean
    if op == "munit_layer_norm":
        if impl != "exact":
            return kernels.munit_layer_norm(x, scale, shift, eps=0.0, activation="leaky_relu", impl=impl)
        first = torch.tensor([True, False], device=x.device)[:, None, None, None]
        y = _x_hat(x, first, (1, 2, 3), True)[0] * scale[:, None, None] + shift[:, None, None]
        return torch.nn.functional.leaky_relu(y, 0.2)
    if impl != "exact":
        return kernels.instance_norm(x, scale, shift, eps=0.0, activation="leaky_relu", padding=1, impl=impl)
    y = _x_hat(x, constant, (2, 3), False)[0] * scale[:, None, None] + shift[:, None, None]
    return torch.nn.functional.pad(torch.nn.functional.leaky_relu(y, 0.2), (1,) * 4, mode="reflect")


def check_without_eps(
    op: str,
    impl: str,
    size: tuple[int, int],
    value: float,
    channels_last: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Constant planes become 0, with gradient 0; the others are what they always are."""
    x, style = (randn(2, 3, *size, seed=s, dtype=torch.float64, device=device) for s in (0, 1))
    constant = CONSTANT.to(device)
    x[0 if op == "munit_layer_norm" else constant] = value
    style[constant.flip(1)] = value
    given = [t.to(dtype) for t in (x, style)]
    if channels_last:
        given = [t.contiguous(memory_format=torch.channels_last) for t in given]
    given = [given[0], *(randn(3, seed=s, device=device) for s in (2, 3)), given[1]]
    results = []
    for run, cast in ((impl, None), ("exact", torch.float64)):
        leaves = [t.detach().to(cast or t.dtype).requires_grad_() for t in given]
        y = _without_eps(op, run, *leaves)
        grad = randn(*y.shape, seed=4, dtype=dtype, device=device)
        grads = torch.autograd.grad(y, leaves, grad.to(y.dtype), allow_unused=True)
        twice = torch.autograd.grad(_without_eps(op, run, *leaves), leaves[0], grad.to(y.dtype), create_graph=True)
        results.append([y, *grads, *twice])
    for got, want in zip(*results):
        if want is not None:
            scale = max(1.0, want.abs().max().item(), (want.numel() <= 3) * (2 * x[0, 0].numel()) ** 0.5)
            error = (got.double() - want).abs().max().item()
            assert error <= 16 * torch.finfo(dtype).eps * scale, (op, error, scale)
    y, dx, dx_again = (results[0][i] for i in (0, 1, -1))
    still = slice(0, 1) if op == "munit_layer_norm" else constant
    assert not dx[still].count_nonzero() and not dx_again[still].count_nonzero()
    assert y.isfinite().all()


def check_out_of_range(impl: str, size: tuple[int, int], device: str = "cpu") -> None:
    """A variance that float32 does not hold must show: 1 / inf would make zeros of the plane."""
    x = randn(2, 3, *size, device=device)
    good = kernels.instance_norm(x, impl=impl)
    x[0, 1] *= 1e25
    y = kernels.instance_norm(x, impl=impl)
    spoilt = torch.tensor([[False, True, False], [False] * 3], device=device)
    assert y[spoilt].isnan().all() and torch.equal(y[~spoilt], good[~spoilt])
    for f in (lambda x: kernels.munit_layer_norm(x, None, None, impl=impl), lambda x: kernels.adain(x, x, impl=impl)):
        assert f(x)[0, 1].isnan().all()
