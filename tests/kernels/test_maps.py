"""What holds for every operator on maps: every output is written, whatever is empty; results lie in memory as x does;
nothing depends on the caller's autocast."""

import pytest
import torch
from support.map_cases import (
    EMPTY,
    LAYOUTS,
    OPERATORS,
    check_format,
    check_out_of_range,
    check_without_eps,
    check_written,
    derivatives,
    randn,
    strided,
)

import kernels

IMPLS = pytest.mark.parametrize("impl", ["cpu", "reference"])
NAMES = pytest.mark.parametrize("name", OPERATORS)


@IMPLS
@pytest.mark.parametrize("shape", EMPTY, ids=str)
@NAMES
def test_every_output_is_written(name, shape, impl, poisoned):
    check_written(name, shape, impl)


@NAMES
def test_every_output_of_other_maps_is_written(name, poisoned):
    """Odd sizes, one channel, one sample; and the positions of a map may be fewer than its patches."""
    for shape in ((1, 1, 4, 5), (3, 1, 4, 3), (1, 67, 5, 4)):
        got, want = (derivatives(OPERATORS[name], randn(*shape), impl) for impl in ("cpu", "reference"))
        for kind in got:
            for a, b in zip(got[kind], want[kind]):
                torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4 * max(1.0, b.abs().max().item()))


@IMPLS
@pytest.mark.parametrize("layout", LAYOUTS)
@NAMES
def test_results_lie_in_memory_as_the_map_does(name, layout, impl):
    check_format(name, layout, impl)


@pytest.mark.parametrize("layout", ["channels apart, last", "inside, last", "transposed"])
def test_compiled_results_lie_so_too(layout):
    """What the compiler is told of an operator's result is what the operator makes."""
    x = strided((2, 4, 6, 7), layout)
    for f in (
        lambda x: kernels.instance_norm(x, padding=1),
        lambda x: kernels.blur_downsample(x),
    ):
        torch._dynamo.reset()
        got, want = torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x)
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want)


@IMPLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@NAMES
def test_autocast_changes_nothing(name, dtype, impl):
    x = randn(2, 3, 6, 7, dtype=dtype)
    want = derivatives(OPERATORS[name], x, impl)
    got = derivatives(OPERATORS[name], x, impl, torch.autocast("cpu", torch.bfloat16))
    for kind in want:
        for a, b in zip(got[kind], want[kind]):
            assert a.dtype == b.dtype and torch.equal(a, b), (kind, (a.double() - b.double()).abs().max())


@pytest.mark.parametrize("track", [False, True])
def test_autocast_changes_nothing_with_running_statistics(track):
    norm = kernels.InstanceNorm2d(3, affine=True, track_running_stats=track, padding=1, impl="reference").eval()
    x = randn(2, 3, 6, 7)
    with torch.autocast("cpu", torch.bfloat16):
        got = norm(x)
    assert torch.equal(got, norm(x))


# ---- two dtypes ------------------------------------------------------------------------------------------------------

NARROW, OTHERS = torch.bfloat16, (torch.float32, torch.float16, torch.float64)


@IMPLS
@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_inside_autocast_a_style_and_a_residual_may_have_another_dtype(dtype, impl):
    content, style, residual = randn(2, 3, 6, 7, dtype=NARROW), randn(2, 3, 5, 4, seed=1), randn(2, 3, 6, 7, seed=2)
    content.requires_grad_()
    for op, other in (
        (lambda t: kernels.adain(content, t, alpha=0.25, impl=impl), style),
        (lambda t: kernels.instance_norm(content, residual=t, impl=impl), residual),
        (lambda t: kernels.munit_layer_norm(content, None, None, residual=t, padding=1, impl=impl), residual),
    ):
        with pytest.raises(TypeError, match="want (the content's|x's) torch.bfloat16"):
            op(other.to(dtype))
        given = other.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = op(given)
        grads = torch.autograd.grad(y.float().square().sum(), (content, given))
        assert y.dtype == NARROW and [g.dtype for g in grads] == [NARROW, dtype]
        exact = other.to(dtype).to(NARROW).requires_grad_()
        like = op(exact)
        wanted = torch.autograd.grad(like.float().square().sum(), (content, exact))
        for a, b in zip((y, *grads), (like, *wanted)):
            torch.testing.assert_close(a.double(), b.double(), rtol=0.02, atol=0.02 * b.abs().max().item())


def test_the_statistics_of_a_wider_style_are_its_own():
    """A float32 style is not rounded to the content's 16 bits first."""
    content = randn(1, 3, 6, 7, dtype=NARROW)
    style = randn(1, 3, 16, 16, seed=1) / 64 + 1
    with torch.autocast("cpu", torch.bfloat16):
        for impl in ("cpu", "reference"):
            y = kernels.adain(content, style, impl=impl).float()
            want = kernels.adain(content.float(), style, impl=impl)
            assert torch.equal(y, want.to(NARROW).float())


@IMPLS
def test_lists_of_maps_may_have_several_dtypes(impl):
    maps = [randn(2, 3, 6, 7, dtype=d, seed=i) for i, d in enumerate((torch.float32, NARROW, torch.float16))]
    maps = [x.requires_grad_() for x in maps]
    patches, ids = kernels.sample_patches(maps, 5, impl=impl)
    grads = torch.autograd.grad(sum(p.float().sum() for p in patches), maps)
    for x, p, at, g in zip(maps, patches, ids, grads):
        assert p.dtype == g.dtype == x.dtype
        assert torch.equal(p, x.flatten(2)[:, :, at].transpose(1, 2))
        assert torch.equal(g.flatten(2).count_nonzero(2), torch.full((2, 3), 5))


# ---- constant planes without eps, and values out of range ------------------------------------------------------------

WITHOUT_EPS = [
    ("instance_norm", (8, 9)),
    ("adain", (8, 9)),
    ("munit_layer_norm", (8, 9)),
    ("instance_norm", (160, 210)),
]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
@pytest.mark.parametrize("op, size", WITHOUT_EPS)
def test_constant_planes_without_eps(isa, op, size, value, channels_last):
    for impl in ("cpu", "reference"):
        check_without_eps(op, impl, size, value, channels_last)
    check_without_eps(op, "cpu", size, value, channels_last, torch.bfloat16)


def test_torch_makes_zeros_of_constant_planes_without_eps():
    x = torch.full((1, 2, 4, 4), 0.5, requires_grad=True)
    y = torch.nn.functional.instance_norm(x, eps=0.0)
    assert not y.count_nonzero() and not torch.autograd.grad(y.sum(), x)[0].count_nonzero()


def test_values_out_of_range_show(isa):
    for size in ((8, 9), (160, 210)):
        check_out_of_range("cpu", size)
        check_out_of_range("reference", size)
