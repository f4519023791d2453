"""sample_patches and tap_patches: the published form, drawing, arguments, derivatives, torch.compile."""

import numpy as np
import pytest
import torch
from support.patches_cases import exact, in_layout, randn

import kernels
from kernels.patches import reference
from kernels.patches.spec import layout_of

X = torch.zeros(2, 4, 6, 5)
IDS = torch.tensor([0, 7, 7, 29])


def cut(x, ids):
    """As CUT's PatchSampleF has it."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)[:, ids]


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "inside"])
def test_is_the_published_form(layout, impl):
    maps = [in_layout(randn(2, c, 9, 7, seed=c), layout) for c in (3, 20)]
    patches, ids = kernels.sample_patches(maps, 12, impl=impl)
    for x, rows, at in zip(maps, patches, ids):
        assert torch.equal(rows, cut(x, at)) and rows.is_contiguous()
        assert at.dtype == torch.int64 and at.unique().numel() == 12


def test_draws_are_torchs_permutations_in_order():
    maps = [torch.zeros(1, 2, 9, 7), torch.zeros(1, 2, 4, 4)]
    for given in (None, torch.Generator()):
        torch.manual_seed(5)
        if given is not None:
            given.manual_seed(5)
        _, ids = kernels.sample_patches(maps, 10, generator=given)
        same = torch.Generator().manual_seed(5)
        for x, at in zip(maps, ids):
            assert torch.equal(at, torch.randperm(x[0, 0].numel(), generator=same)[:10])


def test_all_positions():
    x = randn(2, 3, 4, 5)
    (rows,), (at,) = kernels.sample_patches([x], None)
    assert torch.equal(at, torch.arange(20)) and torch.equal(rows, x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("make", [lambda t: t, lambda t: t.int(), lambda t: t.numpy(), lambda t: t.tolist()])
def test_positions_of_any_kind(make):
    x = randn(2, 4, 6, 5)
    given = make(IDS)
    (rows,), (at,) = kernels.sample_patches([x], ids=[given])
    assert torch.equal(rows, cut(x, IDS)) and torch.equal(at, IDS)
    assert torch.equal(kernels.tap_patches(x, given)[1], rows)
    backwards = IDS.numpy()[::-1]
    assert torch.equal(kernels.tap_patches(x, backwards)[1], cut(x, IDS.flip(0)))


def test_maps_of_several_dtypes_and_batches():
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float64)
    maps = [randn(1 + i % 2, 3 + i, 5, 4 + i, dtype=d).requires_grad_() for i, d in enumerate(dtypes)]
    patches, ids = kernels.sample_patches(maps, 9)
    grads = torch.autograd.grad([rows.sum() for rows in patches], maps)
    for x, rows, at, dx in zip(maps, patches, ids, grads):
        assert rows.dtype == dx.dtype == x.dtype
        want, want_dx = exact(x, at, torch.ones_like(rows))
        assert torch.equal(rows.double(), want) and torch.equal(dx.double(), want_dx)


def test_gradients_only_where_asked():
    a, b = randn(1, 3, 4, 4).requires_grad_(), randn(1, 3, 4, 4)
    (p, q), _ = kernels.sample_patches([a, b], 5)
    (q.sum() * 2 + p.sum()).backward()
    assert a.grad.sum() == 15 and b.grad is None
    (p, q), _ = kernels.sample_patches([a, b.requires_grad_()], 5)
    grads = torch.autograd.grad(q.sum(), [a, b], allow_unused=True)
    assert grads[0] is None and grads[1].sum() == 15


def test_maps_are_not_kept_for_backward():
    x = randn(1, 3, 4, 4).requires_grad_()
    rows = kernels.sample_patches([x * 1.0], 5)[0][0]
    assert all(t.dtype == torch.int64 for t in rows.grad_fn.saved_tensors)


def test_a_number_of_patches_may_be_numpys():
    x = randn(2, 3, 6, 5)
    for number in (np.int64(7), np.int32(7), np.uint8(7)):
        assert kernels.sample_patches([x], number)[0][0].shape == (2, 7, 3)
        assert kernels.PatchSampler(number)([x])[0][0].shape == (2, 7, 3)
    for wrong, kind in ((np.float64(7), "float64"), (np.bool_(True), "bool"), (np.array([7]), "ndarray")):
        with pytest.raises(TypeError, match=f"num_patches: got {kind}"):
            kernels.sample_patches([x], wrong)


# ---- errors ------------------------------------------------------------------------------------------------------

BAD = [
    (TypeError, "features: got a tensor, want a list of maps", lambda: kernels.sample_patches(X)),
    (TypeError, "features: got dict", lambda: kernels.sample_patches({})),
    (ValueError, "features: got an empty list", lambda: kernels.sample_patches([])),
    (TypeError, r"features\[1\]: got NoneType", lambda: kernels.sample_patches([X, None], 3)),
    (TypeError, r"features\[0\]: got torch.int64", lambda: kernels.sample_patches([X.long()], 3)),
    (ValueError, r"features\[0\]: got shape \(4, 6\)", lambda: kernels.sample_patches([X[0, :, :, 0]], 3)),
    (ValueError, r"features\[0\]: got shape .*, want .* at least one", lambda: kernels.sample_patches([X[..., :0]], 3)),
    (ValueError, r"features\[1\]: got device meta", lambda: kernels.sample_patches([X, X.to("meta")], 3)),
    (TypeError, "num_patches: got float", lambda: kernels.sample_patches([X], 2.0)),
    (TypeError, "num_patches: got bool", lambda: kernels.sample_patches([X], True)),
    (ValueError, "num_patches: got 0", lambda: kernels.sample_patches([X], 0)),
    (
        ValueError,
        r"num_patches: got 31, want at most 30, the positions of features\[1\] \(6 x 5\)",
        lambda: kernels.sample_patches([torch.zeros(1, 1, 8, 8), X], 31),
    ),
    (TypeError, "generator: got int", lambda: kernels.sample_patches([X], 3, generator=0)),
    (TypeError, "ids: got a tensor, want a list", lambda: kernels.sample_patches([X], ids=IDS)),
    (ValueError, "ids: got 1, want one for each of the 2 maps", lambda: kernels.sample_patches([X, X], ids=[IDS])),
    (TypeError, r"ids\[0\]: got torch.float32", lambda: kernels.sample_patches([X], ids=[IDS.float()])),
    (TypeError, r"ids\[0\]: got torch.bool", lambda: kernels.sample_patches([X], ids=[IDS > 3])),
    (TypeError, r"ids\[0\]: got float64", lambda: kernels.sample_patches([X], ids=[[0.5]])),
    (TypeError, r"ids\[0\]: got str", lambda: kernels.sample_patches([X], ids=["012"])),
    (TypeError, r"ids\[0\]: got NoneType", lambda: kernels.sample_patches([X], ids=[None])),
    (ValueError, r"ids\[0\]: got shape \(2, 2\)", lambda: kernels.sample_patches([X], ids=[IDS.view(2, 2)])),
    (ValueError, r"ids\[0\]: got shape \(\)", lambda: kernels.sample_patches([X], ids=[np.array(3)])),
    (ValueError, r"ids\[0\]: got no positions", lambda: kernels.sample_patches([X], ids=[IDS[:0]])),
    (ValueError, r"ids\[0\]: got no positions", lambda: kernels.sample_patches([X], ids=[[]])),
    (ValueError, r"ids\[1\]: got 30, want .* \[0, 30\)", lambda: kernels.sample_patches([X, X], ids=[IDS, [3, 30]])),
    (ValueError, r"ids\[0\]: got -1", lambda: kernels.sample_patches([X], ids=[[3, -1]])),
    (ValueError, r"ids\[0\]: got 1099511627776", lambda: kernels.sample_patches([X], ids=[[3, 1 << 40]])),
    (ValueError, r"ids\[1\]: got 30", lambda: kernels.sample_patches([X.double(), X], ids=[IDS, [30]])),
    (ValueError, r"ids\[0\]: got 30", lambda: kernels.sample_patches([X], ids=[[30]], impl="reference")),
    (ValueError, r"ids\[1\]: got 30", lambda: kernels.sample_patches([X, X[:0]], ids=[IDS, [30]])),
    (ValueError, "ids: got -1", lambda: kernels.tap_patches(X, [-1])),
    (ValueError, "ids: got 30", lambda: kernels.tap_patches(X[:, :0], [30])),
    (ValueError, r"ids: got shape \(1, 1, 4\)", lambda: kernels.tap_patches(X, [[IDS]])),
    (TypeError, "x: got list", lambda: kernels.tap_patches([X], IDS)),
    (ValueError, "impl: got 'fast'", lambda: kernels.sample_patches([X], 3, impl="fast")),
    (kernels.BackendUnavailable, "not torch.float64", lambda: kernels.sample_patches([X.double()], 3, impl="cpu")),
    (ValueError, "num_patches: got 0", lambda: kernels.PatchSampler(0)),
    (ValueError, "impl: got 'fast'", lambda: kernels.PatchSampler(impl="fast")),
]


@pytest.mark.parametrize("kind, text, call", BAD, ids=[text for _, text, _ in BAD])
def test_errors_name_the_argument(kind, text, call):
    with pytest.raises(kind, match=text):
        call()


# ---- module ------------------------------------------------------------------------------------------------------


def test_module():
    sampler = kernels.PatchSampler(7)
    assert repr(sampler) == "PatchSampler(num_patches=7)" and not sampler.state_dict()
    x = randn(2, 4, 6, 5)
    patches, ids = sampler([x], generator=torch.Generator().manual_seed(1))
    again, same = sampler([x], ids)
    assert torch.equal(patches[0], again[0]) and same[0] is ids[0]


# ---- derivatives -------------------------------------------------------------------------------------------------


def sampled(x, impl="auto"):
    return kernels.sample_patches([x.sin()], ids=[IDS], impl=impl)[0][0]


def tapped(x, impl="auto"):
    t, rows = kernels.tap_patches(x.sin(), IDS, impl=impl)
    return torch.cat([(t * t).flatten(), rows.flatten().tanh()])


@pytest.mark.parametrize("op", [sampled, tapped])
def test_first_and_second_derivative_in_float64(op):
    x = randn(2, 3, 6, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("op", [sampled, tapped])
def test_higher_derivatives_of_the_fused_path(op, order):
    def derivative(dtype):
        x = randn(2, 3, 6, 5).to(dtype).requires_grad_()
        value = op(x).pow(3).sum()
        for _ in range(order):
            (found,) = torch.autograd.grad(value, x, create_graph=True)
            value = (found**2).sum()
        return found

    torch.testing.assert_close(derivative(torch.float32).double(), derivative(torch.float64), rtol=1e-4, atol=1e-4)


def test_create_graph_leaves_a_graph_where_only_patches_are_used():
    x = randn(2, 3, 6, 5).requires_grad_()
    _, rows = kernels.tap_patches(x * 1.0, IDS)
    (dx,) = torch.autograd.grad(rows.pow(3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.sum(), x)
    y = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(reference.sample(y, IDS).pow(3).sum(), y, create_graph=True)
    torch.testing.assert_close(ddx.double(), torch.autograd.grad(want.sum(), y)[0])


# ---- torch.compile, opcheck --------------------------------------------------------------------------------------


def both(x, impl="auto"):
    a = x * 1.0
    t, rows = kernels.tap_patches(a, IDS, impl=impl)
    (p, q), _ = kernels.sample_patches([t.sin(), a], ids=[IDS, IDS], impl=impl)
    return t * 2.0, rows, p, q


# one run of inductor, slow: what it makes of operators, opaque to it, depends on no format, and norm and nce show it
@pytest.mark.parametrize(
    "layout, backend",
    [
        *(("contiguous", "aot_eager"), ("channels_last", "aot_eager")),
        pytest.param("contiguous", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiles_in_one_graph(layout, backend):
    torch._dynamo.reset()
    x = in_layout(randn(2, 4, 6, 5), layout).requires_grad_()
    results = []
    for f in (both, torch.compile(both, fullgraph=True, backend=backend)):
        out = f(x)
        results.append([*out, *torch.autograd.grad(sum(r.square().sum() for r in out), x)])
    torch.testing.assert_close(*results)
    assert results[0][-1].stride() == results[1][-1].stride()


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("use", ["map and patches", "map", "patches"])
def test_compiles_where_a_result_is_unused(use, impl):
    torch._dynamo.reset()

    def f(x):
        t, rows = kernels.tap_patches(x * 1.0, IDS, impl=impl)
        return (t * 2.0).sum() * ("map" in use) + (rows.sum() if "patches" in use else 0.0)

    x = randn(2, 4, 6, 5).requires_grad_()
    results = [torch.autograd.grad(g(x), x)[0] for g in (f, torch.compile(f, fullgraph=True, backend="aot_eager"))]
    torch.testing.assert_close(*results)


def test_compiles_where_it_draws():
    torch._dynamo.reset()
    sampler = torch.compile(kernels.PatchSampler(6), fullgraph=True, backend="aot_eager")
    x = randn(2, 4, 6, 5).requires_grad_()
    (rows,), (at,) = sampler([x])
    assert torch.equal(rows, cut(x, at)) and at.unique().numel() == 6
    assert torch.autograd.grad(rows.sum(), x)[0].sum() == 48


def test_compiled_code_checks_positions_too():
    torch._dynamo.reset()
    f = torch.compile(lambda x, at: kernels.sample_patches([x], ids=[at])[0], fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"ids\[0\]: got 30"):
        f(X, torch.tensor([30]))


def test_opcheck():
    """All of opcheck's utilities on the registered ops (autograd lives outside them, so tensors come detached)."""
    ops = torch.ops.fused_i2i
    maps = [randn(2, 4, 6, 5), in_layout(randn(1, 3, 7, 7), "channels_last"), randn(1, 2, 40)]
    ids = [IDS, IDS, IDS.flip(0)]
    torch.library.opcheck(ops.sample_patches.default, (maps, ids, "cpu"))
    forms = [layout_of(x) for x in maps]
    sizes = [side for form in forms for side in form.size]
    rows = ops.sample_patches(maps, ids, "cpu")
    torch.library.opcheck(
        ops.sample_patches_backward.default,
        (rows, ids, sizes, [4, 4, 3], [form.channels_last for form in forms], False, "cpu"),
    )
    for x, form, patches in zip(maps, forms, rows):
        torch.library.opcheck(ops.tap_patches_backward.default, (x, patches, IDS, form.channels_last, "cpu"))
