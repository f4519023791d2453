"""In which dtypes the contrastive losses and their weights compute: 16-bit weights that are broadcast, autocast, mixed
inputs, float16's range, numbers of numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.nce_numerics import problem, stock

import kernels

IMPLS = pytest.mark.parametrize("impl", ["reference", "cpu"])


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


# ---- weights that are broadcast --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["reference", "cpu", "compiled"])
def test_gradients_of_broadcast_weights_are_summed_before_they_are_rounded(how, dtype):
    """Each of 512 rows adds less to a log weight than float16 holds."""
    given = problem(4, 128, 16, 4096)
    g = torch.rand(4, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 512

    def op(log_weight, row_weight):
        tensors = {
            name: t.to(torch.float64 if log_weight.dtype == torch.float64 else dtype) for name, t in given.items()
        }
        impl = "reference" if log_weight.dtype == torch.float64 or how == "reference" else "cpu"
        losses = kernels.patch_nce_loss(
            **tensors, log_weight=log_weight, row_weight=row_weight, normalize=True, reduction="none", impl=impl
        )
        return (losses * g).sum() * 1e-3

    def gradients(f, kind):
        weights = [torch.zeros(4096, dtype=kind), torch.ones(128, dtype=kind)]
        loss = f(*(w.requires_grad_() for w in weights))
        return torch.autograd.grad(loss, weights)

    given = {name: t.to(dtype).double() for name, t in given.items()}
    exact = gradients(op, torch.float64)
    torch._dynamo.reset()
    f = torch.compile(op, fullgraph=True, backend="aot_eager") if how == "compiled" else op
    for got, want in zip(gradients(f, dtype), exact):
        assert got.dtype == dtype
        step = 2.0**-24 if dtype == torch.float16 else 0.0  # the smallest float16: the sums may be near it
        assert (got.double() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max() + step


@IMPLS
@pytest.mark.parametrize("name", ["log_weight", "similarity_weight", "row_weight"])
def test_losses_are_float32_whatever_the_weights_are(impl, name):
    q, k = (t.float() for t in problem(2, 6, 8).values())
    shapes = {"row_weight": [(6,), (2, 6)]}.get(name, [(6, 6), (2, 6, 6)])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for shape in shapes:
            weight = torch.ones(shape, dtype=dtype, requires_grad=name != "similarity_weight")
            for reduction in ("none", "mean", "sum"):
                loss = kernels.patch_nce_loss(q, k, **{name: weight}, reduction=reduction, impl=impl)
                assert loss.dtype == torch.float32
            if weight.requires_grad:
                assert torch.autograd.grad(loss, weight)[0].dtype == dtype
    assert kernels.patch_nce_loss(q.double(), k.double(), **{name: weight}).dtype == torch.float64


# ---- autocast --------------------------------------------------------------------------------------------------------

AUTOCAST = [torch.bfloat16, torch.float16]


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


CALLS = {
    "image": lambda q, k, impl: kernels.patch_nce_loss(q, k, normalize=True, impl=impl),
    "shared negatives": lambda q, k, impl: kernels.patch_nce_loss(q, k, negatives=k[0], impl=impl),
    "own negatives": lambda q, k, impl: kernels.patch_nce_loss(q, k, negatives=k, decoupled=True, impl=impl),
    "monce": lambda q, k, impl: kernels.monce_log_weight(q, k, eps=0.1, iterations=5, impl=impl).sin().sum(),
    "hdce": lambda q, k, impl: kernels.hdce_weight(k, 0.1).sum() + q.square().sum(),
    "relation": lambda q, k, impl: kernels.semantic_relation_loss(3 * q, k, normalize=False),
    "sinkhorn": lambda q, k, impl: kernels.sinkhorn((q[:, :, None] * k[:, None]).sum(-1) * 9, 5, impl=impl).sin().sum(),
}


def derivatives(f, q, k, impl):
    q = q.clone().requires_grad_()
    value = f(q, k, impl)
    (first,) = torch.autograd.grad(value, q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    return value.detach(), first.detach(), second


@IMPLS
@pytest.mark.parametrize("dtype", AUTOCAST, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_autocast_changes_nothing(impl, name, dtype):
    """Neither values nor gradients of any order, wherever they are taken: bit for bit those outside."""
    q, k = features(2, 40, 16), features(2, 40, 16, seed=1)
    want = derivatives(CALLS[name], q, k, impl)
    with torch.autocast("cpu", dtype):
        got = derivatives(CALLS[name], q, k, impl)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    found = []
    for enabled in (False, True):  # a backward pass inside, of what was computed outside
        x = q.clone().requires_grad_()
        value = CALLS[name](x, k, impl)
        with torch.autocast("cpu", dtype, enabled=enabled):
            found += torch.autograd.grad(value, x)
    assert torch.equal(*found)


def test_autocast_changes_nothing_that_is_compiled():
    q, k = features(2, 40, 16), features(2, 40, 16, seed=1)
    for impl in ("reference", "cpu"):
        torch._dynamo.reset()
        f = torch.compile(lambda q: kernels.patch_nce_loss(q, k, impl=impl), fullgraph=True, backend="aot_eager")  # noqa: B023
        found = []
        for enabled in (False, True):
            x = q.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = f(x)
                found.append((loss.detach(), *torch.autograd.grad(loss, x)))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


MIXED = {
    "keys": lambda q, k, impl: kernels.patch_nce_loss(q.bfloat16(), k, impl=impl),
    "queries": lambda q, k, impl: kernels.patch_nce_loss(q, k.bfloat16(), impl=impl),
    "negatives": lambda q, k, impl: kernels.patch_nce_loss(q.bfloat16(), k.bfloat16(), negatives=k[0], impl=impl),
    "two 16-bit dtypes": lambda q, k, impl: kernels.patch_nce_loss(q.bfloat16(), k.half(), impl=impl),
    "layers": lambda q, k, impl: kernels.patch_nce_loss([q, q.bfloat16()], [k, k.bfloat16()], impl=impl),
    "negatives of one layer of two": lambda q, k, impl: kernels.patch_nce_loss(
        [q.bfloat16()] * 2, [k.bfloat16()] * 2, negatives=[None, k], impl=impl
    ),
    "module": lambda q, k, impl: kernels.PatchNCELoss(num_patches=40, impl=impl)(
        q.bfloat16().flatten(0, 1), k.flatten(0, 1)
    ).mean(),
    "monce": lambda q, k, impl: kernels.monce_log_weight(q.bfloat16(), k, impl=impl).sum(),
    "relation": lambda q, k, impl: kernels.semantic_relation_loss(q.bfloat16(), k),
}


@IMPLS
@pytest.mark.parametrize("name", MIXED)
def test_autocast_may_mix_dtypes(impl, name):
    """float32 and 16 bits together are taken, without rounding the float32 ones; outside autocast they are refused."""
    q, k = (x.bfloat16().float() for x in (features(2, 40, 16), features(2, 40, 16, seed=1)))
    found = []
    for x, y in ((q, k), (q.double(), k.double())):
        x = x.clone().requires_grad_()
        if x.dtype == torch.float32:
            with torch.autocast("cpu", torch.bfloat16):
                loss = MIXED[name](x, y, impl)
        else:
            loss = UNMIXED[name](x, y)
        assert loss.dtype == x.dtype
        found.append((loss.double(), torch.autograd.grad(loss, x)[0].double()))
    (loss, grad), (want, exact) = found
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, exact, rtol=0, atol=2.0**-8 * exact.abs().max().item())
    with pytest.raises(TypeError, match=r"(k|negatives|q\[1\]|negatives\[1\]): got torch.\w+, want"):
        MIXED[name](q, k, impl)


UNMIXED = {  # the same calls in float64
    "keys": lambda q, k: kernels.patch_nce_loss(q, k),
    "negatives": lambda q, k: kernels.patch_nce_loss(q, k, negatives=k[0]),
    "negatives of one layer of two": lambda q, k: kernels.patch_nce_loss([q, q], [k, k], negatives=[None, k]),
    "monce": lambda q, k: kernels.monce_log_weight(q, k).sum(),
    "relation": lambda q, k: kernels.semantic_relation_loss(q, k),
}
UNMIXED |= {name: UNMIXED["keys"] for name in ("queries", "two 16-bit dtypes", "layers", "module")}


def test_autocast_does_not_take_float64_with_others():
    q, k = features(2, 40, 16), features(2, 40, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="k: got torch.float64, want q's"):
        kernels.patch_nce_loss(q, k.double())


# ---- float16 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reference", "cpu", "compiled reference"])
def test_rows_of_zeros_in_float16_have_finite_gradients(how):
    given = {name: t.half() for name, t in problem(1, 20, 8, 30).items()}
    given["q"][0, 3] = given["k"][0, 5] = given["negatives"][7] = 0
    tensors = [t.requires_grad_() for t in given.values()]

    def op(q, k, negatives):
        impl = how.removeprefix("compiled ")
        return kernels.patch_nce_loss(
            q, k, negatives=negatives, normalize=True, temperature=0.1, detach_keys=False, reduction="sum", impl=impl
        )

    torch._dynamo.reset()
    f = torch.compile(op, fullgraph=True, backend="aot_eager") if how.startswith("compiled") else op
    got = torch.autograd.grad(f(*tensors), tensors)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    loss = stock(normalize=True, temperature=0.1)(*wide).sum()
    for grad, want in zip(got, torch.autograd.grad(loss, wide)):
        assert want.abs().max() > 65504
        want = want.clamp(-65504, 65504)
        assert ((grad.double() - want).abs() <= 4e-3 * want.abs().amax(-1, keepdim=True) + 1e-4).all()


# ---- numpy -----------------------------------------------------------------------------------------------------------


@IMPLS
def test_numbers_of_numpy_are_numbers(impl):
    q, k = features(2, 6, 8), features(2, 6, 8, seed=1)
    for kind in (np.float64, np.float32, np.float16, np.int64):
        value = kind(0.5) if kind is not np.int64 else kind(1)
        pairs = [
            [f(number) for number in (value, float(value))]
            for f in (
                lambda x: kernels.patch_nce_loss(q, k, temperature=x, impl=impl),
                lambda x: kernels.PatchNCELoss(x, np.int32(6), impl=impl)(q.flatten(0, 1), k.flatten(0, 1)),
                lambda x: kernels.monce_log_weight(q, k, eps=x, neg_term_weight=x, iterations=np.int64(3), impl=impl),
                lambda x: kernels.hdce_weight(k, x),
            )
        ]
        for got, want in pairs:
            assert got.dtype == torch.float32 and torch.equal(got, want)
    for bad in (np.float32("nan"), np.float32("inf"), np.float32(0)):
        with pytest.raises(ValueError, match="temperature: got"):
            kernels.patch_nce_loss(q, k, temperature=bad, impl=impl)
    for bad in (np.bool_(True), 1j, torch.tensor(0.5), np.array([0.5])):
        with pytest.raises(TypeError, match="temperature: got"):
            kernels.patch_nce_loss(q, k, temperature=bad, impl=impl)
