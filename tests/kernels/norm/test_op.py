"""The public functions: arguments, autograd to second order, torch.compile, autocast, choice of implementation."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.numerics import check_rule, in_layout, make, run
from support.turns import taking_turns

import kernels
from kernels.norm.spec import INSTANCE, INSTANCE_UNBIASED, LAYER_STD, new_stats

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
X = torch.zeros(2, 4, 6, 6)


# ---- the reference against torch's own modules, in float64 -----------------------------------------------------------


@LAYOUTS
def test_reference_is_torchs_instance_norm(channels_last):
    given = make((2, 5, 9, 7), "weight", "bias", "residual")

    def published(x, weight, bias, residual):
        y = F.leaky_relu(F.instance_norm(x.contiguous(), weight=weight, bias=bias), 0.2) + residual
        return F.pad(y, (2, 2, 2, 2), mode="reflect")

    def ours(x, weight, bias, residual):
        return kernels.instance_norm(x, weight, bias, activation="leaky_relu", residual=residual, padding=2)

    want, got = run(published, given, torch.float64, False), run(ours, given, torch.float64, channels_last)
    for name, t in want.items():
        torch.testing.assert_close(got[name], t, rtol=1e-10, atol=1e-10)


def test_reference_is_the_published_adain_forms():
    given = make((2, 5, 9, 7), "scale", "shift")
    n, c = 2, 5

    def munit(x, scale, shift):  # fold N into C, batch norm in training mode
        y = F.batch_norm(x.reshape(1, n * c, 9, 7), None, None, scale.flatten(), shift.flatten(), True)
        return y.view_as(x)

    def stargan_v2(x, scale, shift):
        return (1 + scale[:, :, None, None]) * F.instance_norm(x) + shift[:, :, None, None]

    for published, offset in ((munit, False), (stargan_v2, True)):
        want = run(published, given, torch.float64, False)
        got = run(lambda **k: kernels.adaptive_instance_norm(**k, unit_offset=offset), given, torch.float64, False)
        for name, t in want.items():
            torch.testing.assert_close(got[name], t, rtol=1e-10, atol=1e-10)


def test_adain_is_the_published_transfer():
    given = {"x": make((2, 3, 9, 7))["x"], "style": make((2, 3, 5, 11), seed=4)["x"]}

    def published(x, style):
        def moments(t):
            flat = t.flatten(2)
            return flat.mean(2)[..., None, None], (flat.var(2, unbiased=True) + 1e-5).sqrt()[..., None, None]

        (m, s), (ms, ss) = moments(x), moments(style)
        return (x - m) / s * ss + ms

    for ours, theirs in (
        (kernels.adain, published),  # in its place: docs/operators.md
        (lambda x, style: kernels.adain(x, style, alpha=0.7), lambda x, style: 0.7 * published(x, style) + 0.3 * x),
    ):
        want = run(lambda x, style: theirs(x, style), given, torch.float64, False)
        got = run(lambda x, style: ours(x, style), given, torch.float64, False)
        for name, t in want.items():
            torch.testing.assert_close(got[name], t, rtol=1e-12, atol=1e-12)


def test_munit_layer_norm_at_batch_one_and_constant():
    x = torch.full((1, 2, 3, 3), 2.0, dtype=torch.float64, requires_grad=True)
    for impl_x in (x, x.float().detach().requires_grad_()):
        y = kernels.munit_layer_norm(impl_x, None, None)
        (g,) = torch.autograd.grad(y[0, 0, 0, 0], impl_x)
        want = torch.full_like(g, -1 / 18 / 1e-5)
        want[0, 0, 0, 0] += 1e5
        torch.testing.assert_close(g, want, rtol=1e-5, atol=1e-2)  # the deviation itself contributes nothing


# ---- derivatives -----------------------------------------------------------------------------------------------------

OPS = {
    "instance": lambda x, w, b, r: kernels.instance_norm(x, w, b, activation="leaky_relu", residual=r, padding=1),
    "instance tanh": lambda x, w, b, r: kernels.instance_norm(x, w, b, activation="tanh", residual=r),
    "layer": lambda x, w, b, r: kernels.munit_layer_norm(x, w, b, activation="leaky_relu", residual=r, padding=1),
    "adaptive": lambda x, w, b, r: kernels.adaptive_instance_norm(
        x, w.repeat(2, 1), b.repeat(2, 1), unit_offset=True, residual=r
    ),
    "adain": lambda x, w, b, r: kernels.adain(x * w[:, None, None], r + b[:, None, None], alpha=0.6),
}


@pytest.mark.parametrize("name", OPS)
def test_first_and_second_derivative_in_float64(name):
    given = make((2, 2, 3, 4), "weight", "bias", "residual")
    inputs = [t.requires_grad_() for t in given.values()]
    assert torch.autograd.gradcheck(OPS[name], inputs)
    assert torch.autograd.gradgradcheck(OPS[name], inputs)


@LAYOUTS
@pytest.mark.parametrize("name, shape", [*((name, (2, 3, 6, 5)) for name in OPS), ("instance tanh", (2, 3, 3, 4, 5))])
def test_second_derivative_of_the_fused_path(name, shape, channels_last):
    """create_graph=True in float32 must give what float64 gives: R1 and WGAN-GP through a normalised discriminator."""
    given = make(shape, "weight", "bias", "residual")

    def penalty(dtype):
        inputs = [in_layout(t.to(dtype), channels_last) if t.dim() > 2 else t.to(dtype) for t in given.values()]
        inputs = [t.detach().requires_grad_() for t in inputs]
        y = OPS[name](*inputs)
        first = torch.autograd.grad((y * y.detach().cos()).sum(), inputs, create_graph=True, allow_unused=True)
        total = sum((g.double() ** 2).sum() for g in first if g is not None)
        return torch.autograd.grad(total, inputs, allow_unused=True)

    for got, want in zip(penalty(torch.float32), penalty(torch.float64)):
        if want is None:
            assert got is None
        elif got is None:  # linear in it: no path at all, or one that carries zeros
            assert not want.any()
        else:
            torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4 * max(1.0, want.abs().max().item()))


def test_gradients_only_where_asked():
    given = {k: v.float() for k, v in make((2, 3, 6, 5), "weight", "bias", "residual").items()}
    full = run(lambda **k: kernels.instance_norm(**k, padding=1), given, torch.float32, False)
    g = torch.randn(full["y"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
    for asked in given:
        inputs = {k: v.clone().requires_grad_(k == asked) for k, v in given.items()}
        y = kernels.instance_norm(**inputs, padding=1)
        (grad,) = torch.autograd.grad(y, inputs[asked], g)
        torch.testing.assert_close(grad, full[f"d{asked}"])


# ---- torch.compile, opcheck ------------------------------------------------------------------------------------------


# inductor, which takes seconds, once: what it makes of the operators, opaque to it, depends on neither
@pytest.mark.parametrize(
    "name, channels_last, backend",
    [*((name, last, "aot_eager") for name in OPS for last in (False, True)), ("adaptive", True, "inductor")],
)
def test_compiles_in_one_graph(name, channels_last, backend):
    torch._dynamo.reset()
    given = {k: v.float() for k, v in make((2, 4, 8, 6), "weight", "bias", "residual").items()}

    def op(x, weight, bias, residual):
        return OPS[name](x * 1.0, weight, bias, residual) * 2.0

    eager = run(op, given, torch.float32, channels_last)
    compiled = run(torch.compile(op, fullgraph=True, backend=backend), given, torch.float32, channels_last)
    for key, t in eager.items():
        torch.testing.assert_close(compiled[key], t)
    assert compiled["y"].stride() == eager["y"].stride()


COLD_MODEL = """
import torch, kernels
m = kernels.fuse(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.InstanceNorm2d(8), torch.nn.ReLU()))
for dtype in (torch.float32, torch.bfloat16):
    x = torch.randn(1, 3, 16, 16, dtype=dtype)
    y = torch.compile(m.to(dtype), fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, m(x))
"""
COLD_FUNCTION = """
import torch, kernels
x = torch.randn(1, 3, 16, 16)
f = lambda x: kernels.instance_norm(x, impl="cpu")
torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))
"""


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(COLD_MODEL, marks=pytest.mark.slow, id="fused model"),
        pytest.param(COLD_FUNCTION, id="named implementation"),
    ],
)
def test_compiles_before_anything_ran_eagerly(code, forked):
    """The choice of implementation, with its build and its files, must not be traced."""
    done = forked(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype, impl", taking_turns(2, [torch.float32, torch.float64], ["auto", "reference"]), ids=str)
def test_compiles_where_one_tensor_is_two_arguments(dtype, impl):
    torch._dynamo.reset()
    x, s = torch.randn(2, 4, 6, 6, dtype=dtype), torch.randn(2, 4, dtype=dtype)
    for f in (
        lambda x, s: kernels.instance_norm(x, residual=x, impl=impl),
        lambda x, s: kernels.adaptive_instance_norm(x, s, s, residual=x, padding=1, impl=impl),
        lambda x, s: kernels.adain(x, x, alpha=0.5, impl=impl),
    ):
        inputs = [t.clone().requires_grad_() for t in (x, s)]
        results = []
        for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
            y = g(*inputs)
            results.append([y, *torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)])
        torch.testing.assert_close(*results)


def test_compiles_with_dynamic_shapes():
    torch._dynamo.reset()
    f = torch.compile(
        lambda x: kernels.instance_norm(x, activation="relu", padding=1),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for size in (8, 12, 17):
        x = torch.randn(2, 3, size, size + 1)
        torch.testing.assert_close(f(x), kernels.instance_norm(x, activation="relu", padding=1))


@pytest.mark.parametrize(
    "options, channels_last", taking_turns(2, [(INSTANCE, 0), (INSTANCE_UNBIASED, 2), (LAYER_STD, 1)], [False, True])
)
def test_opcheck(options, channels_last):
    """All four of opcheck's utilities on the registered ops (autograd lives outside them, so tensors come detached)."""
    given = {k: v.float() for k, v in make((2, 4, 8, 6), "weight", "bias", "residual").items()}
    x, residual = in_layout(given["x"], channels_last), in_layout(given["residual"], channels_last)
    form, padding = options
    options = (form, 1e-5, 0.0, 1, 0.2, padding, "cpu")
    ops = torch.ops.fused_i2i
    torch.library.opcheck(ops.norm_forward.default, (x, given["weight"], given["bias"], residual, *options))
    torch.library.opcheck(ops.norm_forward.default, (x, None, None, None, *options))
    y, stats = ops.norm_forward(x, given["weight"], None, None, *options)
    for need_residual in (False, padding > 0):
        torch.library.opcheck(
            ops.norm_backward.default, (torch.ones_like(y), x, given["weight"], None, stats, need_residual, *options)
        )
    torch.library.opcheck(ops.plane_stats.default, (x, form, 1e-5, "cpu"))
    moments = torch.randn(2, 4), torch.randn(2, 4)
    torch.library.opcheck(ops.plane_stats_backward.default, (*moments, x, new_stats(x).fill_(1.0), form, "cpu"))


# ---- autocast, dtypes, memory formats, empty batches -----------------------------------------------------------------


def test_autocast_keeps_the_input_dtype():
    x = torch.randn(2, 4, 8, 8)
    conv = torch.nn.Conv2d(4, 4, 3, padding=1)
    norm = kernels.InstanceNorm2d(4, affine=True, activation="relu", padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = conv(x)
        y = norm(h)
        assert h.dtype == y.dtype == torch.bfloat16
        assert kernels.instance_norm(h, padding=1, impl="reference").dtype == torch.bfloat16
        mixed = kernels.instance_norm(h, residual=x)  # float32 skip connection: takes the map's dtype
        assert mixed.dtype == torch.bfloat16
        assert kernels.instance_norm(x).dtype == torch.float32
    y.float().sum().backward()
    assert norm.weight.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="residual: got torch.float32, want x's torch.bfloat16"):
        kernels.instance_norm(h.detach(), residual=x)


@pytest.mark.parametrize("parameter", [torch.float32, torch.bfloat16, torch.float64])
def test_parameters_of_another_dtype(parameter):
    x = torch.randn(2, 4, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, dtype=parameter, requires_grad=True)
    for impl in ("cpu", "reference"):
        y = kernels.instance_norm(x, weight, impl=impl)
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert y.dtype == dx.dtype == torch.bfloat16 and dweight.dtype == parameter


@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("padding", [0, 1])
def test_memory_format_is_kept(impl, padding):
    x = torch.randn(2, 4, 8, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    assert kernels.instance_norm(x, padding=padding, impl=impl).is_contiguous()
    y = kernels.instance_norm(last, padding=padding, impl=impl)
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    if impl == "reference":  # its gradients are made by torch's own operators
        return
    last.requires_grad_()
    (g,) = torch.autograd.grad(kernels.instance_norm(last, padding=padding, impl=impl).sum(), last)
    assert g.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_empty_batch(impl):
    for shape, padding in (((0, 4, 8, 8), 1), ((2, 0, 8, 8), 0)):
        x = torch.zeros(shape, requires_grad=True)
        weight = torch.ones(shape[1], requires_grad=True)
        y = kernels.instance_norm(x, weight, padding=padding, impl=impl)
        assert y.shape == (*shape[:2], 8 + 2 * padding, 8 + 2 * padding)
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert dx.shape == shape and torch.equal(dweight, torch.zeros(shape[1]))


# ---- bad input -------------------------------------------------------------------------------------------------------

norm = kernels.instance_norm
BAD = [
    (lambda: norm("x"), TypeError, "x: got str"),
    (lambda: norm(X.int()), TypeError, "x: got torch.int32, want float32"),
    (lambda: norm(X.to(torch.complex64)), TypeError, "x: got torch.complex64"),
    (lambda: norm(X.to_sparse()), TypeError, "x: got layout torch.sparse_coo"),
    (lambda: norm(X[0, 0]), ValueError, r"x: got shape \(6, 6\), want \(N, C, \*spatial\)"),
    (lambda: norm(torch.zeros(2, 4, 1, 1)), ValueError, "more than 1 spatial element"),
    (lambda: norm(torch.zeros(2, 4, 0, 5)), ValueError, "more than 1 spatial element"),
    (lambda: norm(X, torch.ones(5)), ValueError, r"weight: got shape \(5,\), want \(4,\)"),
    (lambda: norm(X, None, torch.ones(4).int()), TypeError, "bias: got torch.int32"),
    (lambda: norm(X, 1.0), TypeError, "weight: got float"),
    (lambda: norm(X, torch.ones(4, device="meta")), ValueError, "weight: got device meta, want x's cpu"),
    (lambda: norm(X, residual=X[:1]), ValueError, r"residual: got shape \(1, 4, 6, 6\), want \(2, 4, 6, 6\)"),
    (lambda: norm(X, residual=X.half()), TypeError, "residual: got torch.float16, want x's torch.float32"),
    (lambda: norm(X, padding=6), ValueError, "padding: got 6 for planes of 6 x 6"),
    (lambda: norm(X, padding=-1), ValueError, "padding: got -1"),
    (lambda: norm(X, padding=1.0), TypeError, "padding: got float, want an int"),
    (lambda: norm(X[0], padding=1), ValueError, "padding: got 1 for x of shape"),
    (lambda: norm(X, activation="gelu"), ValueError, "activation: got 'gelu', want one of 'none', 'relu'"),
    (lambda: norm(X, eps=-1.0), ValueError, "eps: got -1.0"),
    (lambda: norm(X, eps=math.nan), ValueError, "eps: got nan"),
    (lambda: norm(X, eps="1e-5"), TypeError, "eps: got str"),
    (lambda: norm(X, negative_slope=math.inf), ValueError, "negative_slope: got inf"),
    (lambda: norm(X, impl="fast"), ValueError, "impl: got 'fast', want one of 'auto'"),
    (lambda: norm(X, impl="cuda"), kernels.BackendUnavailable, "the tensors are on cpu"),
    (lambda: norm(X.double(), impl="cpu"), kernels.BackendUnavailable, "not torch.float64"),
    (lambda: norm(X.to("meta"), impl="cpu"), kernels.BackendUnavailable, "the tensors are on meta"),
    (
        lambda: kernels.adaptive_instance_norm(X, torch.ones(4), torch.ones(2, 4)),
        ValueError,
        r"scale: got shape \(4,\)",
    ),
    (lambda: kernels.adaptive_instance_norm(X, None, torch.ones(2, 4)), TypeError, "scale: got None"),
    (lambda: kernels.adaptive_instance_norm(X, X[..., 0, 0], X[..., 0, 0], unit_offset=1), TypeError, "unit_offset"),
    (lambda: kernels.adain(X, X[:, :3]), ValueError, r"style: got shape \(2, 3, 6, 6\)"),
    (lambda: kernels.adain(X, X.half()), TypeError, "style: got torch.float16"),
    (lambda: kernels.adain(X, X[:, :, :1, :1]), ValueError, "style: got shape .* more than 1 spatial element"),
    (lambda: kernels.adain(X, X, alpha=1.5), ValueError, "alpha: got 1.5"),
    (lambda: kernels.munit_layer_norm(torch.zeros(1, 1, 1, 1), None, None), ValueError, "more than 1 element"),
    (lambda: kernels.munit_layer_norm(X, torch.ones(3), None), ValueError, r"gamma: got shape \(3,\)"),
]


@pytest.mark.parametrize("call, kind, text", BAD, ids=[text for _, _, text in BAD])
def test_bad_input_is_named_before_anything_runs(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


# ---- torch's own defects that the benchmarks and the README speak of -------------------------------------------------


def test_torchs_own_gradient_at_batch_one_with_a_channels_last_gradient():
    """torch 2.13 on the CPU returns a wrong gradient there, and a right one for N = 2. Ours is right in both. Once
    this fails because torch is right, the sentence in the README and the FAIL rows of the benchmarks have had their
    day."""
    if torch.__version__.split("+")[0] != "2.13.0":
        pytest.skip(f"pinned for torch 2.13.0, this is {torch.__version__}")
    errors = {}
    for n in (1, 2):
        given = {"x": make((n, 16, 32, 32))["x"]}
        exact = run(kernels.instance_norm, given, torch.float64, False)["dx"]
        stock = run(lambda x: F.instance_norm(x), given, torch.float32, True)["dx"]
        ours = run(kernels.instance_norm, given, torch.float32, True)["dx"]
        errors[n] = (stock.double() - exact).abs().max() / exact.abs().max()
        assert (ours.double() - exact).abs().max() / exact.abs().max() < 1e-6
    assert errors[1] > 0.5 and errors[2] < 1e-5


def test_rule_can_fail():
    exact = {"y": torch.ones(1, 1, 8, 8, dtype=torch.float64)}
    torchs = {"y": torch.ones(1, 1, 8, 8)}
    with pytest.raises(AssertionError):
        check_rule({"y": torch.ones(1, 1, 8, 8) + 1e-6}, torchs, exact, torch.float32)
