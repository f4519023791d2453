"""What the kernels of patch_nce_loss for GPUs must compute: Triton's in its interpreter (TRITON_INTERPRET=1), CUDA's in
the emulation, or both on a GPU. Forms, sizes, layers and gradients; data and arguments that break careless code are in
test_device_hard.py."""

from __future__ import annotations

import pytest
import torch
from support.device_numerics import DEVICE, close
from support.nce_device_numerics import BF16, FLOAT, FORMS, HALF, NAMES, check, inputs, leaves, outcome, randn
from support.turns import taking_turns

from kernels.nce import patch_nce_loss
from kernels.nce.spec import EPS, INVERSE_NORM, LSE, LSE_GRAD, Layer, Needs, Spec

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


# ---- every form; the sizes take turns --------------------------------------------------------------------------------

OPTIONS = [(n, d) for n in (False, True) for d in (False, True)]


@pytest.mark.parametrize("form, options, dtype", taking_turns(3, FORMS, OPTIONS, [FLOAT, BF16, HALF]))
def test_forms(form, options, dtype, impl):
    normalize, decoupled = options
    shape, negatives = FORMS[form]
    weights = ("", "both", "log", "similarity")[(len(form) + normalize + 2 * decoupled) % 4]
    check(impl, inputs(shape, negatives, weights, dtype), normalize=normalize, decoupled=decoupled)


@pytest.mark.parametrize(
    "form, weights, normalize", taking_turns(2, FORMS, ["", "log", "similarity", "both"], [False, True])
)
def test_weights(form, weights, normalize, impl):
    check(impl, inputs(*FORMS[form], weights), normalize=normalize)


@pytest.mark.parametrize("rows, width, normalize", taking_turns(2, [2, 5, 33], [1, 3, 37, 300], [False, True]))
def test_sizes(rows, width, normalize, impl):
    given = inputs((2, rows, width))
    # a normalised number is 1 or -1 whatever it is: its gradients, of this size, cancel completely
    terms = 1 / (0.3 * min(given[name].abs().min().item() for name in "qk")) if normalize and width == 1 else 0.0
    check(impl, given, terms=terms, normalize=normalize, temperature=0.3 if normalize else float(width))


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("negatives", [(1,), (130,), (2, 1)])
def test_negatives_of_odd_sizes(negatives, dtype, impl):
    check(impl, inputs((2, 3, 300), negatives, dtype=dtype), normalize=True)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_widths_of_networks(width, dtype, impl):
    check(impl, inputs((1, 20, width), (150,), dtype=dtype), normalize=True)


@pytest.fixture
def one_multiprocessor(monkeypatch, impl):
    """However small a problem is, the largest tiles fill the device."""
    if impl == "triton":
        from kernels.nce import launch_triton

        monkeypatch.setattr(launch_triton, "sms_of", lambda x: 1)
        yield
        return
    from kernels.nce import cut_cuda, launch_cuda

    monkeypatch.setattr(launch_cuda, "cut", lambda sizes, itemsize, d: cut_cuda.cut(sizes, itemsize, d._replace(sms=1)))
    launch_cuda._plans.clear()
    yield
    launch_cuda._plans.clear()


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
@pytest.mark.parametrize("kind", ["in-image", "shared negatives"])
def test_larger_tiles(kind, dtype, one_multiprocessor, launched, impl):
    shape, negatives = ((2, 130, 40), None) if kind == "in-image" else ((2, 70, 40), (140,))
    check(impl, inputs(shape, negatives, "log", dtype), normalize=True)
    if impl == "cuda":
        from kernels.nce.cut_cuda import ROWS

        assert [launch.name for launch in launched] == ["forward", "backward"]
        assert all(launch.function.endswith(f", 64, {ROWS[-1]}>") for launch in launched)
        return
    from kernels.nce import launch_triton

    found = {launch.name: launch.constants for launch in launched}
    assert found["nce_forward"]["BLOCK_Q"] == 64
    tiles = {name: (c["BLOCK_Q"], c["BLOCK_N"]) for name, c in found.items()}
    bits = 32 if dtype == FLOAT else 16
    assert tiles["nce_backward_rows"] == launch_triton.ROWS[bits][-1][:2]
    assert tiles["nce_backward_keys"] == launch_triton.KEYS[bits][-1][:2]


# ---- several layers --------------------------------------------------------------------------------------------------


def several(dtype, forms):
    return [inputs(*form, dtype=dtype, seed=10 * i) for i, form in enumerate(forms)]


MIXED = [((2, 17, 37), None), ((1, 5, 64), None), ((2, 2, 1), None)]


@pytest.mark.parametrize("count,normalize,dtype", [(3, True, FLOAT), (3, False, HALF), (9, True, FLOAT)], ids=str)
def test_layers_of_any_sizes_are_what_they_are_alone(count, normalize, dtype, launched, impl):
    layers = several(dtype, (MIXED * 3)[:count])
    own = [leaves(given) for given in layers]
    q, k = ([t[name] for t in own] for name in "qk")
    options = dict(normalize=normalize, temperature=0.5, detach_keys=False, impl=impl)
    losses = patch_nce_loss(q, k, **options, reduction="none")
    assert len(launched) == (count + 7) // 8
    torch.autograd.backward(losses, [randn(*loss.shape, seed=99) for loss in losses])
    assert len(launched) == (3 if impl == "triton" else 2) * ((count + 7) // 8)
    for given, mine, loss in zip(layers, own, losses):
        alone = outcome(given, impl, normalize=normalize, temperature=0.5)
        assert torch.equal(loss, alone["loss"])
        assert torch.equal(mine["q"].grad, alone["q"]) and torch.equal(mine["k"].grad, alone["k"])


def test_layers_of_different_kinds(impl):
    """Negatives or a weight for some of the layers only; gradients for some only."""
    layers = [
        inputs((2, 9, 16), None, "log"),
        inputs((1, 7, 24), (5,), "", seed=20),
        inputs((2, 6, 24), (2, 11), "both", seed=40),
        inputs((1, 9, 16), None, "", seed=60),
    ]
    found = {}
    for name, cast in ((impl, None), ("reference", None), ("reference", torch.float64)):
        own = [leaves(given, cast) for given in layers]
        own[0]["q"].requires_grad_(False)
        own[2]["negatives"].requires_grad_(False)
        own[3]["k"].requires_grad_(False)
        lists = {name: [t[name] for t in own] for name in (*NAMES, "similarity_weight")}
        q, k = lists.pop("q"), lists.pop("k")
        loss = patch_nce_loss(q, k, **lists, detach_keys=False, reduction="sum", temperature=2.0, impl=name)
        loss.backward()
        grads = {f"{n}{i}": t[n].grad for i, t in enumerate(own) for n in NAMES if t[n] is not None}
        found[name, cast] = {"loss": loss.detach()} | {n: g for n, g in grads.items() if g is not None}
    ours, torchs, exact = found.values()
    assert ours.keys() == exact.keys() and "q0" not in ours and "negatives2" not in ours and "k3" not in ours
    for name, want in exact.items():
        close(name, ours[name], torchs[name], want)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_with_row_weights(reduction, dtype, impl):
    layers = several(dtype, MIXED[:2])
    found = []
    for name, cast in ((impl, None), ("reference", torch.float64)):
        own = [leaves(given, cast) for given in layers]
        weight = [randn(*given["q"].shape[:2], seed=5).abs().to(cast or FLOAT) for given in layers]
        q, k = ([t[name] for t in own] for name in "qk")
        loss = patch_nce_loss(q, k, row_weight=weight, normalize=True, reduction=reduction, impl=name)
        loss.backward()
        assert all(t.grad is None for t in k)
        found.append([loss.detach(), *(t.grad for t in q)])
    for got, want in zip(*found):
        eps = torch.finfo(got.dtype).eps
        assert (got.double() - want).abs().max() <= (8 if dtype == FLOAT else 4) * eps * want.abs().max()


# ---- which gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, name", [(f, n) for f, (_, negatives) in FORMS.items() for n in NAMES if negatives or n != "negatives"]
)
def test_one_gradient_alone_is_that_of_all(form, name, launched, impl):
    given = inputs(*FORMS[form], "log")
    every = outcome(given, impl, normalize=True)
    launched.clear()
    own = {n: t if t is None else t.detach().clone().requires_grad_(n == name) for n, t in given.items()}
    q, k = own.pop("q"), own.pop("k")
    loss = patch_nce_loss(q, k, **own, temperature=0.3, normalize=True, detach_keys=False, reduction="none", impl=impl)
    loss.backward(randn(*loss.shape, seed=99))
    wanted = (own | {"q": q, "k": k})[name].grad
    assert torch.equal(wanted, every[name])
    by_keys = name == "negatives" or (name == "k" and given["negatives"] is None)
    names = {
        "triton": ["nce_forward", "nce_backward_keys" if by_keys else "nce_backward_rows"],
        "cuda": ["forward", "backward" if by_keys or name == "log_weight" else "backward_rows"],
    }
    assert [launch.name for launch in launched] == names[impl]


def test_no_gradients_at_all(launched, impl):
    given = inputs((2, 9, 16))
    loss = patch_nce_loss(given["q"], given["k"], impl=impl)
    assert not loss.requires_grad and len(launched) == 1 and launched[0].name.endswith("forward")


def test_statistics(launcher, impl):
    for decoupled in (False, True):
        given = inputs((2, 9, 16), None, "both")
        given["similarity_weight"] = given["similarity_weight"].expand(2, 9, 9)
        layer = Layer(*given.values())
        loss, stats, dq_unscaled = launcher.forward([layer, layer], Spec(0.5, True, decoupled), [True, True])
        assert stats.shape == (3, 36)
        assert [u.numel() for u in dq_unscaled] == [0 if impl == "triton" else 2 * 9 * 16] * 2
        unit = [t.double() / (t.double().norm(dim=-1, keepdim=True) + EPS) for t in layer[:2]]
        z = unit[0] @ unit[1].mT / 0.5 * layer.similarity_weight + layer.log_weight
        lse = z.masked_fill(torch.eye(9, dtype=torch.bool, device=DEVICE), float("-inf")).logsumexp(-1).flatten()
        lse_grad = torch.sigmoid(lse - ((unit[0] * unit[1]).sum(-1) / 0.5).flatten())
        for half in (slice(0, 18), slice(18, 36)):
            torch.testing.assert_close(stats[LSE, half].double(), lse, rtol=0, atol=2e-6)
            want = torch.ones_like(lse_grad) if decoupled else lse_grad
            torch.testing.assert_close(stats[LSE_GRAD, half].double(), want, rtol=2e-6, atol=0)
            want = 1 / (layer.q.double().norm(dim=-1).flatten() + EPS)
            torch.testing.assert_close(stats[INVERSE_NORM, half].double(), want, rtol=2e-6, atol=0)


def test_no_rows(launched, launcher):
    q = torch.zeros(0, 4, 8, device=DEVICE)
    loss, stats, dq_unscaled = launcher.forward([Layer(q, q, None, None, None)], Spec(0.07, True, False), [True])
    needs = [Needs(True, True, False, True)]
    ((dq, dk, dn, dw),) = launcher.backward(
        loss, [Layer(q, q, None, None, None)], stats, dq_unscaled, needs, Spec(0.07, True, False)
    )
    assert loss.shape == (0,) and stats.shape == (3, 0) and dq.shape == dk.shape == q.shape and dw.shape == (0, 4, 4)
    assert dn is None and not launched
