"""The C++ implementation against float64, on every instruction set this machine runs."""

import functools

import pytest
import torch
from support.numerics import LEVELS, check_rule, error, in_layout, make, rounded, run

import kernels
from kernels.norm import launch_cpu
from kernels.norm.spec import Spec

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ids = {"argnames": "dtype", "argvalues": DTYPES, "ids": ["f32", "bf16", "f16"]}
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])

# shape, what the shape exercises
SHAPES = [
    ((2, 3, 5, 7), "less than a vector a plane; few channels"),
    ((1, 1, 9, 13), "one channel"),
    ((2, 70, 6, 5), "channels: full vectors and a rest"),
    ((1, 33, 31, 33), "odd everything"),
    ((3, 64, 16, 16), "whole vectors"),
    ((1, 2, 160, 210), "planes cut into chunks between threads, the last one short"),
    ((1, 5, 300, 70), "several chunks channels last with repeated channels and a rest"),
]
VARIANTS = [
    ("instance_norm", (), {}),
    ("instance_norm", ("weight", "bias"), {"activation": "relu"}),
    ("instance_norm", ("weight",), {"activation": "leaky_relu", "negative_slope": 0.01}),
    ("instance_norm", ("bias", "residual"), {"activation": "tanh"}),
    ("instance_norm", ("residual",), {"activation": "relu", "padding": 1}),
    ("instance_norm", (), {"activation": "relu", "padding": 3}),
    ("adaptive_instance_norm", ("scale", "shift"), {"activation": "relu"}),
    ("adaptive_instance_norm", ("scale", "shift", "residual"), {"unit_offset": True, "padding": 2}),
    ("munit_layer_norm", ("gamma", "beta"), {"activation": "relu"}),
    ("munit_layer_norm", (), {"padding": 1}),
    ("munit_layer_norm", ("gamma", "beta", "residual"), {"activation": "leaky_relu", "padding": 1}),
]


def variant(op, names, options, impl):
    f = getattr(kernels, op)
    if op == "munit_layer_norm":
        return lambda x, weight=None, bias=None, residual=None: f(
            x, weight, bias, residual=residual, impl=impl, **options
        )
    return functools.partial(f, impl=impl, **options)


def inputs_of(shape, names, **kwargs):
    return make(shape, *({"gamma": "weight", "beta": "bias"}.get(n, n) for n in names), **kwargs)


def hold(op, names, options, shape, dtype, channels_last, **kwargs):
    given = rounded(inputs_of(shape, names, **kwargs), dtype)
    reference = variant(op, names, options, "reference")
    exact = run(reference, given, torch.float64, channels_last)
    torchs = run(reference, given, dtype, channels_last)
    ours = run(variant(op, names, options, "cpu"), given, dtype, channels_last)
    check_rule(ours, torchs, exact, dtype, (op, names, options, shape))
    return ours


@pytest.mark.parametrize(**ids)
@LAYOUTS
@pytest.mark.parametrize("op, names, options", VARIANTS)
def test_error_is_at_most_twice_torchs(isa, op, names, options, channels_last, dtype):
    # the large shapes exercise the drivers, which are the same code on every level: once is enough
    shapes = SHAPES if isa == LEVELS[-1] else SHAPES[:5]
    for shape, _ in shapes:
        if options.get("padding", 0) < min(shape[2:]):
            hold(op, names, options, shape, dtype, channels_last)


@LAYOUTS
@pytest.mark.parametrize(**ids)
@pytest.mark.parametrize(
    "shape",
    [(2, 6, 37), (1, 40, 3, 5, 7), (2, 3, 33000), (1, 32, 13, 14, 15), (2, 80, 5, 6, 5)],
    ids=["1d", "3d", "long 1d", "3d in chunks", "3d small planes"],
)
def test_other_numbers_of_dimensions(isa, shape, dtype, channels_last):
    hold("instance_norm", ("weight", "bias", "residual"), {"activation": "relu"}, shape, dtype, channels_last)
    hold("instance_norm", (), {"activation": "leaky_relu", "negative_slope": 0.01}, shape, dtype, channels_last)


@LAYOUTS
@pytest.mark.parametrize(**ids)
def test_planes_of_every_length(isa, dtype, channels_last):
    """Ends of planes: less than a vector, whole vectors, a last vector that begins inside the one before. From 4 on:
    the gradients of two elements cancel almost completely, and nearly so those of three."""
    for length in [*range(4, 36), 63, 64, 65, 67]:
        shape = (1, 3, length)
        hold("instance_norm", ("weight", "residual"), {"activation": "leaky_relu"}, shape, dtype, channels_last)


@LAYOUTS
def test_outputs_are_written_whole(isa, poisoned, channels_last):
    for op, names, options in VARIANTS:
        for shape in ((2, 3, 5, 7), (1, 70, 9, 11)):
            x = {k: v.float() for k, v in inputs_of(shape, names).items()}
            for name, t in run(variant(op, names, options, "cpu"), x, torch.float32, channels_last).items():
                assert torch.isfinite(t).all(), (op, names, options, shape, name)


@LAYOUTS
def test_same_bits_for_any_number_of_threads_and_every_run(channels_last):
    for op, names, options in VARIANTS:
        given = {k: v.float() for k, v in inputs_of((2, 3, 130, 150), names).items()}
        results = []
        for threads in (1, 2, 2, 5):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                results.append(run(variant(op, names, options, "cpu"), given, torch.float32, channels_last))
            finally:
                torch.set_num_threads(before)
        for other in results[1:]:
            for name, t in results[0].items():
                assert torch.equal(t, other[name]), (op, options, name)


def x_hat_error(x, channels_last, impl="cpu"):
    exact = kernels.instance_norm(x.double(), impl="reference", eps=1e-5)
    got = kernels.instance_norm(in_layout(x, channels_last), impl=impl, eps=1e-5)
    return error(got, exact)


@LAYOUTS
@pytest.mark.parametrize("shape", [(1, 4, 256, 256), (1, 128, 64, 64), (1, 32, 17, 16, 15)])
@pytest.mark.parametrize(
    "mean, std, limit",
    # float32 inputs around 1e4 are spaced 1e-3; the statistics of what is really there must still come out. The floor
    # for everything is the rounding of y itself: 5 deviations x 6e-8.
    [(0.0, 1.0, 2e-6), (1e4, 1e-2, 2e-6), (1e4, 1.0, 4e-6), (10.0, 1e-2, 2e-6), (1e6, 1.0, 4e-6)],
)
def test_large_means(isa, shape, mean, std, limit, channels_last):
    x = make(shape, mean=mean, std=std)["x"].float()
    assert x_hat_error(x, channels_last) < limit


@LAYOUTS
def test_reference_holds_large_means_too(channels_last):
    x = make((1, 4, 256, 256), mean=1e4, std=1e-2)["x"].float()
    assert x_hat_error(x, channels_last, "reference") < 1e-5


@LAYOUTS
def test_unlike_beginnings(isa, channels_last):
    """The shift is the mean of the first elements: data whose beginning is unlike the rest must not spoil it."""
    x = make((1, 64, 64, 64))["x"].float()
    border = x.clone()
    border[:, :, :9] = 1e4
    outlier = x.clone()
    outlier[:, :, 0, 0] = 1e4
    for data in (border, outlier):
        exact = kernels.instance_norm(data.double(), impl="reference")
        ours = error(kernels.instance_norm(in_layout(data, channels_last), impl="cpu"), exact)
        torchs = error(torch.nn.functional.instance_norm(data), exact)
        assert ours <= 2 * torchs + 4 * torch.finfo(torch.float32).eps * exact.abs().max()


@LAYOUTS
@pytest.mark.parametrize(**ids)
@pytest.mark.parametrize("shape", [(2, 40, 33, 17), (1, 40, 5, 9, 7)], ids=["2d", "3d"])
def test_constant_planes(isa, shape, channels_last, dtype):
    x = torch.full(shape, 1e4, dtype=dtype)
    y = kernels.instance_norm(in_layout(x, channels_last), impl="cpu")
    assert torch.equal(y, torch.zeros_like(y))
    given = {"x": x.double(), "weight": torch.ones(40).double()}
    # munit_layer_norm's gradient is truly 1 / eps = 1e5 times the upstream one there: beyond float16
    for op in ("instance_norm",) if dtype == torch.float16 else ("instance_norm", "munit_layer_norm"):
        for f in ("cpu", "reference"):
            grads = run(variant(op, ("weight",), {}, f), given, dtype, channels_last)
            assert all(torch.isfinite(t).all() for t in grads.values()), (op, f)


@LAYOUTS
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "tanh"])
def test_nan_and_infinity_stay_in_their_plane(isa, activation, channels_last):
    x = make((2, 20, 12, 11))["x"].float()
    x[0, 3, 2, 2] = float("nan")
    x[1, 5, 0, 0] = float("inf")
    x = in_layout(x, channels_last)
    y = kernels.instance_norm(x, activation=activation, impl="cpu")
    want = kernels.instance_norm(x, activation=activation, impl="reference")
    assert torch.isnan(y[0, 3]).all() and torch.isnan(y[1, 5]).all()
    assert torch.equal(torch.isnan(y), torch.isnan(want))
    z = make((1, 20, 8, 8))["x"].float()
    g = torch.ones_like(z)
    g[0, 2, 0, 0] = float("nan")
    z = in_layout(z, channels_last).requires_grad_()
    (grad,) = torch.autograd.grad(kernels.instance_norm(z, activation=activation, impl="cpu"), z, g)
    assert torch.isnan(grad[0, 2]).any() and torch.isfinite(grad[0, [0, 1, 3, 4]]).all()


# Rounded like a number, the first becomes minus zero and the second zero in bfloat16.
@LAYOUTS
@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7F800001], ids=hex)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_nan_stays_one_whatever_its_bits(isa, dtype, bits, channels_last):
    x = in_layout(make((2, 20, 9, 11))["x"].to(dtype), channels_last)
    bad = torch.ones(20)
    bad[3], bad[17] = torch.tensor([bits, bits], dtype=torch.int32).view(torch.float32)
    where = torch.isnan(bad)
    assert where.sum() == 2
    for weight, bias in ((bad, None), (None, bad)):
        w, b = (None if p is None else p.clone().requires_grad_() for p in (weight, bias))
        x.requires_grad_()
        y = kernels.instance_norm(x, w, b, impl="cpu")
        assert torch.isnan(y[:, where]).all() and torch.isfinite(y[:, ~where]).all()
        (grad,) = torch.autograd.grad(y.float().square().sum(), x)
        assert torch.isnan(grad[:, where]).all() and torch.isfinite(grad[:, ~where]).all()
        x = x.detach()
    stats, g = launch_cpu.moments(x, 1, 1e-5), bad.expand(2, 20)
    for pair in ((g, torch.ones_like(g)), (torch.ones_like(g), g)):
        grad = launch_cpu.moments_backward(*pair, x, stats, 1)
        assert torch.isnan(grad[:, where]).all() and torch.isfinite(grad[:, ~where]).all()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_activation_gradient_at_zero_is_torchs(isa, activation):
    x = torch.zeros(1, 2, 4, 4, requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    grads = []
    for impl in ("cpu", "reference"):
        y = kernels.instance_norm(x, None, bias, activation=activation, impl=impl)
        grads.append(torch.autograd.grad(y.sum(), bias)[0])
    torch.testing.assert_close(*grads)  # relu: 0; leaky ReLU: 16 times the slope


def test_tanh_over_its_range(isa):
    """x_hat of two values is -1 and 1, so the shift alone moves the argument of tanh."""
    t = torch.cat([torch.linspace(-12, 12, 40001), torch.logspace(-30, 0, 5000), -torch.logspace(-30, 0, 5000)])
    x = torch.zeros(1, len(t), 2)
    y = kernels.adaptive_instance_norm(x, torch.zeros(1, len(t)), t[None], activation="tanh", impl="cpu")
    want = torch.tanh(t.double())
    ulp = (y[0, :, 0].double() - want).abs() / (want.abs() * torch.finfo(torch.float32).eps + 1e-45)
    assert ulp.max() < 2.0


@LAYOUTS
def test_residual_is_read_where_it_lies(isa, channels_last):
    """The inside of a padded map, a channel slice, a transposed map: whatever the strides, without being asked."""
    x = in_layout(make((2, 24, 10, 12))["x"].float(), channels_last)
    big = in_layout(make((2, 24, 14, 16), seed=5)["x"].float(), channels_last)
    wide = in_layout(make((2, 50, 10, 12), seed=6)["x"].float(), channels_last)
    turned = in_layout(make((2, 24, 12, 10), seed=7)["x"].float(), channels_last).transpose(2, 3)
    expanded = make((1, 24, 10, 12), seed=8)["x"].float().expand(2, -1, -1, -1)
    for residual in (
        big[:, :, 2:12, 2:14],
        wide[:, 3:27],
        turned,
        expanded,
        in_layout(big, not channels_last)[:, :, :10, :12],
    ):
        for padding in (0, 2):
            y = kernels.instance_norm(x, residual=residual, padding=padding, impl="cpu")
            want = kernels.instance_norm(x, residual=residual.contiguous(), padding=padding, impl="cpu")
            assert torch.equal(y, want)


def test_inputs_that_are_views(isa):
    base = make((2, 24, 20, 22))["x"].float()
    for x in (base[:, ::2], base[:, :, 1:-1, 2:-3], base.transpose(2, 3), base[:1].expand(3, -1, -1, -1)):
        y = kernels.instance_norm(x, impl="cpu")
        assert error(y, kernels.instance_norm(x.double(), impl="reference")) < 2e-6
    last = in_layout(base, True)[:, :, 1:-1, 2:-3]
    y = kernels.instance_norm(last, impl="cpu")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, kernels.instance_norm(last.double(), impl="reference")) < 2e-6


def test_upstream_gradients_of_any_stride(isa):
    x = make((2, 24, 9, 9))["x"].float().requires_grad_()
    y = kernels.instance_norm(x, activation="relu", impl="cpu")
    (a,) = torch.autograd.grad(y.sum(), x, retain_graph=True)  # expanded: all strides 0
    (b,) = torch.autograd.grad(y, x, torch.ones(y.shape).contiguous(memory_format=torch.channels_last))
    assert torch.equal(a, b) and a.is_contiguous()


def test_launcher_writes_into_given_memory(isa):
    x = make((1, 8, 16, 16))["x"].float()
    out = torch.empty_like(x)
    y, stats = launch_cpu.forward(x, None, None, None, Spec(0, 1e-5, 0.0, 0, 0.2, 0), out=out)
    assert y is out and torch.equal(out, kernels.instance_norm(x, impl="cpu"))
    assert torch.allclose(stats[0] + stats[1], x.mean((2, 3)))


@LAYOUTS
def test_adain(isa, channels_last):
    for dtype in DTYPES:
        for shape, style_shape in (
            ((2, 6, 9, 7), (2, 6, 5, 12)),
            ((1, 70, 33, 20), (1, 70, 170, 110)),
            ((1, 3, 4), (1, 3, 40000)),
        ):
            for alpha in (1.0, 0.4):
                content, style = make(shape)["x"], make(style_shape, seed=3, mean=-1.0)["x"]
                given = rounded({"x": content, "style": style}, dtype)

                def op(x, style, impl):
                    return kernels.adain(x, style, alpha=alpha, impl=impl)

                exact = run(functools.partial(op, impl="reference"), given, torch.float64, channels_last)
                torchs = run(functools.partial(op, impl="reference"), given, dtype, channels_last)
                ours = run(functools.partial(op, impl="cpu"), given, dtype, channels_last)
                check_rule(ours, torchs, exact, dtype, (shape, alpha))


@pytest.mark.slow
def test_tensors_beyond_32_bit_offsets():
    x = torch.zeros(1, 33000, 256, 256, dtype=torch.bfloat16)  # 2.2e9 elements
    x[0, -1, :, ::2] = 1
    y = kernels.instance_norm(x, activation="relu", impl="cpu")
    assert abs(y[0, -1, 0, 0].item() - 1) < 1e-2 and y[0, -1, 0, 1] == 0 and y[0, 0].abs().max() == 0
