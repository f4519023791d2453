"""What the norm kernels for GPUs must compute: Triton's in its interpreter (TRITON_INTERPRET=1), CUDA's in the
emulation, or both on a GPU.

Plain torch, in the rule of support/device_numerics.py, is kernels.norm.reference.
"""

from __future__ import annotations

import pytest
import torch
from support import norm_device
from support.device_numerics import DEVICE
from support.norm_device import NAMES, PATHS, check, operator, parameters, randn, residual_of

import kernels
from kernels.norm.spec import INSTANCE, INSTANCE_UNBIASED, LAYER_STD, Spec, new_stats

PLAIN = Spec(INSTANCE, 1e-5, 0.0, 0, 0.2, 0)

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


@pytest.fixture
def force(monkeypatch, impl):
    """force(path): see support/norm_device.py."""
    yield lambda path: norm_device.force(monkeypatch, impl, path)
    norm_device.restore(impl)


# ---- every form, on every path, in both layouts; the other options take turns --------------------------------------

FORMS = ("plain", "affine", "sample", "sample+1", "layer")
TURNS = [
    ("none", "", 0, torch.float32),
    ("relu", "strided", 1, torch.bfloat16),
    ("leaky_relu", "dense", 3, torch.float32),
    ("tanh", "foreign", 0, torch.float16),
    ("relu", "dense", 0, torch.float32),
    ("leaky_relu", "strided", 0, torch.bfloat16),
    ("tanh", "", 1, torch.float32),
]
MATRIX = [
    (form, path, channels_last)
    for form in FORMS
    for path in (PATHS if form != "layer" else ("combined",))
    for channels_last in (False, True)
]


@pytest.mark.parametrize(
    "form, path, channels_last, turn",
    [
        pytest.param(*case, turn, marks=pytest.mark.slow if (index + turn) % 2 else ())
        for index, case in enumerate(MATRIX)
        for turn in range(2)
    ],
)
def test_forms(form, path, channels_last, turn, force, launched, impl):
    index = MATRIX.index((form, path, channels_last))
    activation, residual, padding, dtype = TURNS[(index + 3 * turn) % len(TURNS)]
    force(path)
    n, c, h, w = (2, 3, 67, 61) if not channels_last else (2, 5, 45, 37)
    x = randn(n, c, h, w, dtype=dtype, channels_last=channels_last) * 2 + 1
    scale, shift = parameters(form, n, c)
    op = operator(form, activation=activation, padding=padding)
    check(impl, op, x, scale, shift, residual_of(residual, x))
    assert [launch.name for launch in launched] == NAMES[impl][path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "tanh"])
def test_activations_in_every_dtype(activation, dtype, impl):
    x = randn(2, 3, 9, 8, dtype=dtype) * 3
    scale, shift = parameters("affine", 2, 3)
    check(impl, operator("affine", activation=activation, negative_slope=0.1), x, scale, shift)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("residual", ["", "dense", "strided", "foreign"])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_padding_and_residual(padding, residual, channels_last, impl):
    x = randn(2, 3, 5, 8, channels_last=channels_last)
    check(impl, operator("plain", activation="relu", padding=padding), x, None, None, residual_of(residual, x))


@pytest.mark.parametrize("channels_last", [False, True])
def test_padding_as_wide_as_it_may_be(channels_last, impl):
    """Every row and column is mirrored on both sides: nine gradients meet in one pixel."""
    x = randn(2, 2, 4, 4, channels_last=channels_last)
    check(impl, operator("plain", padding=3), x, None, None, residual_of("dense", x))


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 2),
        (3, 2, 1025),
        (1, 1, 7, 1),
        (2, 5, 1, 3),
        (37, 3, 3, 3),
        (2, 3, 3, 4, 5),
        (1, 70, 4, 4),
        (20, 9, 2, 2),
    ],
)
@pytest.mark.parametrize("form", ["plain", "sample", "layer"])
def test_shapes(form, shape, impl):
    x = randn(*shape)
    scale, shift = parameters(form, *shape[:2])
    # two elements have x_hat = -1, 1 whatever they are: their gradients, of this size, cancel almost completely
    terms = 4 / x.flatten(2).std(2).min().item() if shape[2:] == (2,) else 0.0
    check(impl, operator(form, activation="leaky_relu"), x, scale, shift, randn(*shape, seed=3), terms=terms)


@pytest.mark.parametrize("path", PATHS)
def test_channels_last_3d(path, force, launched, impl):
    """With a residual in the other order, which is copied first."""
    force(path)
    x = randn(2, 20, 7, 8, 9, channels_last=True)
    residual = randn(*x.shape, seed=3)
    op = operator("affine", activation="leaky_relu", negative_slope=0.01)
    y, dx, *_ = check(impl, op, x, *parameters("affine", 2, 20), residual)
    assert y.stride() == x.stride() == dx.stride()
    assert [launch.name for launch in launched] == NAMES[impl][path]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("form", ["plain", "sample", "layer"])
def test_large_planes_are_cut_by_themselves(form, channels_last, launched, impl):
    n, c, h, w = (1, 2, 191, 192) if not channels_last else (1, 3, 120, 121)
    x = randn(n, c, h, w, channels_last=channels_last) + 3
    check(impl, operator(form, activation="relu", padding=1), x, *parameters(form, n, c), residual_of("strided", x))
    if impl == "triton" or form == "layer":  # clusters of CUDA's hold all of these planes
        path = "merged" if form != "layer" else "combined"
    else:
        path = "resident"
    assert [launch.name for launch in launched] == NAMES[impl][path]


# ---- data that break careless statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_large_mean(path, channels_last, force, impl):
    """Mean 1e4, deviation 1e-2 in float32, where the spacing of x is a tenth of a deviation: x_hat keeps its digits."""
    force(path)
    x = randn(2, 4, 61, 53, channels_last=channels_last) * 1e-2 + 1e4
    for form in ("plain", "layer"):
        y = operator(form)(x, None, None, impl=impl)
        exact = operator(form)(x.double(), None, None, impl="reference")
        assert (y.double() - exact).abs().max() <= 3e-6
        check(impl, operator(form), x, None, None)


@pytest.mark.parametrize("path", PATHS)
def test_outliers_at_the_start(path, force, impl):
    force(path)
    x = randn(2, 3, 61, 67)
    x[:, :, 0, :5] = 1e4
    x[0, 1, :30] += 1e5  # whole chunks far away from the rest
    check(impl, operator("affine"), x, *parameters("affine", 2, 3))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_constant_planes(path, value, force, impl):
    force(path)
    x = torch.full((2, 3, 61, 53), value, device=DEVICE)
    gradient = randn(*x.shape, seed=4)
    for form in ("affine", "layer"):
        y, dx, *_ = check(impl, operator(form), x, *parameters(form, 2, 3), gradient=gradient)
        _, shift = parameters(form, 2, 3)
        assert torch.isfinite(dx).all() and (y - shift[:, None, None]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "path,activation",
    [("resident", "relu"), ("resident", "tanh"), ("merged", "leaky_relu"), ("merged", "relu"), ("combined", "none")],
)
def test_not_finite(path, activation, force, impl):
    """NaN and infinity spoil their own plane, where the reference's do, and no other."""
    force(path)
    good = randn(2, 3, 41, 53)
    bad = good.clone()
    bad[0, 0, 3, 4], bad[1, 1, 40, 52], bad[1, 2, 0, 0] = float("nan"), float("inf"), -float("inf")
    op = operator("plain", activation=activation)
    out = {}
    for name, x, which in (("good", good, impl), ("bad", bad, impl), ("torch", bad, "reference")):
        x = x.clone().requires_grad_()
        y = op(x, None, None, impl=which)
        y.backward(torch.ones_like(y))
        out[name] = (y.detach(), x.grad)
    for mine, torchs, clean in zip(out["bad"], out["torch"], out["good"]):
        assert torch.equal(mine.isnan(), torchs.isnan())
        spoilt = torch.tensor([[True, False, False], [False, True, True]], device=DEVICE)
        assert torch.equal(mine[~spoilt], clean[~spoilt])


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_gradient_at_zero_is_torchs(activation, impl):
    x = randn(2, 3, 5, 5)
    zero = torch.zeros(3, device=DEVICE)
    y, dx, dscale, dshift = check(impl, operator("affine", activation=activation), x, zero, zero)[:4]
    assert (y == 0).all() and (dx == 0).all()
    assert (dshift == 0).all() == (activation == "relu")


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_any_dtype_and_stride(dtype, launcher):
    """Columns of a wider matrix, as MUNIT's decoder gets them, are read where they are."""
    x = randn(3, 4, 6, 7)
    wide = randn(3, 11, seed=8).to(dtype)
    spaced = randn(3, 8, seed=9).to(dtype)[:, ::2]
    for scale, shift in ((wide[:, :4], wide[:, 4:8]), (spaced, wide[:, 7:])):
        got = launcher.forward(x, scale, shift, None, PLAIN)[0]
        want = launcher.forward(x, scale.float().contiguous(), shift.float().contiguous(), None, PLAIN)[0]
        assert torch.equal(got, want)


@pytest.mark.parametrize("given", ["scale", "shift"])
def test_one_parameter_alone(given, impl):
    x = randn(3, 4, 6, 7)
    p = randn(4, seed=2)
    check(impl, operator("affine"), x, *((p, None) if given == "scale" else (None, p)))


def test_x_that_is_not_dense(launcher):
    x = randn(3, 8, 6, 14)[:, ::2, :, ::2]
    y, _ = launcher.forward(x, None, None, None, PLAIN)
    assert torch.equal(y, launcher.forward(x.contiguous(), None, None, None, PLAIN)[0])


def test_into_given_memory(launcher):
    x = randn(2, 3, 6, 7)
    out = torch.empty_like(x)
    y, _ = launcher.forward(x, None, None, None, PLAIN, out=out)
    assert y is out and torch.equal(out, launcher.forward(x, None, None, None, PLAIN)[0])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_empty(shape, launched, launcher):
    x = torch.zeros(shape, device=DEVICE)
    p = torch.zeros(shape[1], device=DEVICE)
    y, stats = launcher.forward(x, p, p, None, PLAIN)
    dx, dscale, dshift, dresidual = launcher.backward(y, x, p, p, stats, True, PLAIN._replace(padding=1))
    assert y.shape == dx.shape == dresidual.shape == shape and stats.shape == (4, *shape[:2])
    assert torch.equal(dscale, p) and torch.equal(dshift, p)
    assert launcher.moments(x, INSTANCE_UNBIASED, 1e-5).shape == (4, *shape[:2])
    assert not launched


def test_statistics_that_are_returned(launcher):
    x = randn(2, 3, 9, 11) * 2 + 1
    for kind in (INSTANCE, INSTANCE_UNBIASED, LAYER_STD):
        _, stats = launcher.forward(x, None, None, None, PLAIN._replace(kind=kind))
        dims = (1, 2, 3) if kind == LAYER_STD else (2, 3)
        mean, var = (
            t.expand(2, 3, 1, 1)[..., 0, 0]
            for t in (x.double().mean(dims, True), x.double().var(dims, correction=0, keepdim=True))
        )
        unbiased = x.double().var(dims, keepdim=True).expand(2, 3, 1, 1)[..., 0, 0]
        root = {
            INSTANCE: (var + 1e-5).sqrt(),
            INSTANCE_UNBIASED: (unbiased + 1e-5).sqrt(),
            LAYER_STD: unbiased.sqrt() + 1e-5,
        }
        assert stats.dtype == torch.float32 and stats.shape == new_stats(x).shape
        for got, want in zip((stats[0].double() + stats[1].double(), stats[2], stats[3]), (mean, var, 1 / root[kind])):
            torch.testing.assert_close(got.double(), want, rtol=5e-7, atol=1e-8)


@pytest.mark.parametrize("path,form", [("resident", "sample"), ("merged", "affine"), ("combined", "layer")])
def test_repeats_bit_for_bit(path, form, force, impl):
    force(path)
    x = randn(2, 3, 61, 53)
    op = operator(form, activation="relu", padding=1)
    runs = []
    for _ in range(2):
        given = [t.clone().requires_grad_() for t in (x, *parameters(form, 2, 3), x)]
        y = op(*given, impl=impl)
        y.backward(torch.ones_like(y) * y.detach())
        runs.append((y.detach(), *(t.grad for t in given)))
    assert all(torch.equal(a, b) for a, b in zip(*runs))


# ---- the style side of AdaIN -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_moments(path, channels_last, force, launcher):
    force(path)
    x = (randn(2, 5, 41, 53, channels_last=channels_last) * 3 + 100).requires_grad_()
    stats = launcher.moments(x.detach(), INSTANCE_UNBIASED, 1e-5)
    exact = x.detach().double().requires_grad_()
    mean, std = exact.mean((2, 3)), (exact.var((2, 3)) + 1e-5).sqrt()
    torch.testing.assert_close((stats[0].double() + stats[1].double()), mean.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(1 / stats[3].double(), std.detach(), rtol=5e-7, atol=0)
    grad_mean, grad_std = randn(2, 5, seed=1), randn(2, 5, seed=2)
    (want,) = torch.autograd.grad((mean, std), exact, (grad_mean.double(), grad_std.double()))
    got = launcher.moments_backward(grad_mean, grad_std, x.detach(), stats, INSTANCE_UNBIASED)
    assert got.stride() == x.stride()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6 * want.abs().max().item())


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adain(dtype, alpha, impl):
    content, style = randn(2, 3, 9, 8, dtype=dtype), randn(2, 3, 7, 13, dtype=dtype, seed=1) * 2 + 1
    check(impl, lambda c, s, impl: kernels.adain(c, s, alpha=alpha, impl=impl), content, style)
