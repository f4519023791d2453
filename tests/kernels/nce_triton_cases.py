"""What the triton kernels of patch_nce_loss must compute, on whichever machine runs them: test_triton_interpreter.py
runs this file in triton's interpreter on the CPU, test_nce_gpu.py on a GPU. Not collected by itself.

Rule for numbers: the error against float64 is at most twice that of plain torch in the same dtype, plus 4 units of the
dtype's rounding at the largest value of the result. Plain torch is the reference in float32; for 16-bit inputs, which
the reference widens, it is an expression with products of 16-bit matrices (`narrow`).
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels import backends
from kernels.nce import launch_triton, patch_nce_loss
from kernels.nce.spec import EPS, INVERSE_NORM, LSE, PULL, Layer, Spec

DEVICE = "cpu" if backends.interpreting() else "cuda"
FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
NAMES = ("q", "k", "negatives", "log_weight")

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


@pytest.fixture
def launched(monkeypatch):
    """(name, programs, constants) of the kernels launched so far."""
    found = []
    run = launch_triton._run

    def record(kernel, programs, warps, stages, *args, **constants):
        found.append((kernel.__name__, programs, constants))
        run(kernel, programs, warps, stages, *args, **constants)

    monkeypatch.setattr(launch_triton, "_run", record)
    return found


def randn(*shape, dtype=FLOAT, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def narrow(q, k, *, negatives, log_weight, similarity_weight, temperature, normalize, decoupled):
    """The losses as one would write them for 16-bit tensors: products in 16 bits, the rest in float32."""

    def unit(x):
        return (x / (torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) + EPS)).to(x.dtype)

    n = k if negatives is None else negatives
    if normalize:
        q, k, n = unit(q), unit(k), unit(n)
    positive = (q * k).sum(-1).float() / temperature
    z = (q @ n.transpose(-1, -2)).float() / temperature
    if similarity_weight is not None:
        z = z * similarity_weight.float()
    if log_weight is not None:
        z = z + log_weight.float()
    if negatives is None:
        z = z.masked_fill(torch.eye(z.shape[-1], dtype=torch.bool, device=z.device), float("-inf"))
    margin = torch.logsumexp(z, -1) - positive
    return margin if decoupled else F.softplus(margin)


def close(name, got, torchs, exact, terms=0.0):
    """terms: size of the terms that cancel in the result, where it is far above the result's own."""
    assert got.shape == exact.shape and got.dtype == torchs.dtype, name
    error, allowed = (got.double() - exact).abs().max(), (torchs.double() - exact).abs().max()
    floor = 4 * torch.finfo(got.dtype).eps * max(exact.abs().max().item(), terms)
    assert error <= 2 * allowed + floor, f"{name}: error {error:.2e}, torch's {allowed:.2e}, floor {floor:.2e}"


def inputs(shape, bank=None, weights="", dtype=FLOAT, seed=0, spread=1.0):
    """Tensors by argument. bank: (M,) shared or (B, M). weights: "log", "similarity", "both" or none."""
    b, s, c = shape
    q = randn(b, s, c, dtype=dtype, seed=seed) * spread
    given = dict(q=q, k=(0.6 * q.float() + 0.8 * randn(b, s, c, seed=seed + 1) * spread).to(dtype))
    given["negatives"] = None if bank is None else randn(*bank, c, dtype=dtype, seed=seed + 2) * spread
    count = s if bank is None else bank[-1]
    logs = randn(b, s, count, seed=seed + 3) if weights in ("log", "both") else None
    similarities = randn(b, 1, count, seed=seed + 4).abs() if weights in ("similarity", "both") else None
    return given | {"log_weight": logs, "similarity_weight": similarities}


def leaves(given, cast=None):
    made = {n: None if t is None else (t.detach() if cast is None else t.to(cast)) for n, t in given.items()}
    made = {n: t if t is None else t.clone() for n, t in made.items()}
    for name in NAMES:
        if made[name] is not None:
            made[name].requires_grad_()
    return made


def outcome(given, impl, gradient=None, cast=None, **options):
    """Losses of rows and all gradients by name."""
    own = leaves(given, cast)
    # logits of a few units: of z, exponentials have an error of z roundings, torch's as well as ours
    temperature = 0.3 if options.get("normalize") else 0.3 * own["q"].shape[-1] ** 0.5
    options = dict(dict(temperature=temperature, normalize=False, decoupled=False), **options)
    if impl == "narrow":
        loss = narrow(**own, **options)
    else:
        q, k = own.pop("q"), own.pop("k")
        loss = patch_nce_loss(q, k, **own, **options, detach_keys=False, reduction="none", impl=impl)
        own |= {"q": q, "k": k}
    if gradient is None:
        gradient = randn(*loss.shape, seed=99)
    loss.backward(gradient.to(loss.dtype))
    return {"loss": loss.detach()} | {n: own[n].grad for n in NAMES if own[n] is not None}


def check(given, gradient=None, terms=0.0, **options):
    dtype = given["q"].dtype
    ours = outcome(given, "triton", gradient, **options)
    torchs = outcome(given, "reference" if dtype == FLOAT else "narrow", gradient, **options)
    exact = outcome(given, "reference", gradient, cast=torch.float64, **options)
    for name, want in exact.items():
        close(name, ours[name], torchs[name], want, terms if name in "qk" else 0.0)
    return ours


# ---- every form; the sizes take turns --------------------------------------------------------------------------------

FORMS = {
    "in-image": ((2, 33, 37), None),
    "one problem": ((1, 66, 20), None),
    "bank": ((2, 19, 24), (2, 70)),
    "shared bank": ((3, 7, 33), (41,)),
}
OPTIONS = [(n, d) for n in (False, True) for d in (False, True)]


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("normalize,decoupled", OPTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_forms(form, normalize, decoupled, dtype):
    shape, bank = FORMS[form]
    weights = ("", "both", "log", "similarity")[(len(form) + normalize + 2 * decoupled) % 4]
    check(inputs(shape, bank, weights, dtype), normalize=normalize, decoupled=decoupled)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weights", ["", "log", "similarity", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_weights(form, weights, normalize):
    check(inputs(*FORMS[form], weights), normalize=normalize)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("width", [1, 3, 37, 300])
@pytest.mark.parametrize("rows", [2, 5, 33])
def test_sizes(rows, width, normalize):
    given = inputs((2, rows, width))
    # a normalised number is 1 or -1 whatever it is: its gradients, of this size, cancel completely
    terms = 1 / (0.3 * min(given[name].abs().min().item() for name in "qk")) if normalize and width == 1 else 0.0
    check(given, terms=terms, normalize=normalize, temperature=0.3 if normalize else float(width))


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("bank", [(1,), (130,), (2, 1)])
def test_banks_of_odd_sizes(bank, dtype):
    check(inputs((2, 3, 300), bank, dtype=dtype), normalize=True)


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
@pytest.mark.parametrize("kind", ["in-image", "shared bank"])
def test_larger_tiles(kind, dtype, launched, monkeypatch):
    monkeypatch.setattr(launch_triton, "sms_of", lambda x: 1)
    shape, bank = ((2, 130, 40), None) if kind == "in-image" else ((2, 70, 40), (140,))
    check(inputs(shape, bank, "log", dtype), normalize=True)
    found = {name: constants for name, _, constants in launched}
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
def test_layers_of_any_sizes_are_what_they_are_alone(count, normalize, dtype, launched):
    layers = several(dtype, (MIXED * 3)[:count])
    own = [leaves(given) for given in layers]
    q, k = ([t[name] for t in own] for name in "qk")
    options = dict(normalize=normalize, temperature=0.5, detach_keys=False, impl="triton")
    losses = patch_nce_loss(q, k, **options, reduction="none")
    assert len(launched) == (count + 7) // 8
    torch.autograd.backward(losses, [randn(*loss.shape, seed=99) for loss in losses])
    assert len(launched) == 3 * ((count + 7) // 8)
    for given, mine, loss in zip(layers, own, losses):
        alone = outcome(given, "triton", normalize=normalize, temperature=0.5)
        assert torch.equal(loss, alone["loss"])
        assert torch.equal(mine["q"].grad, alone["q"]) and torch.equal(mine["k"].grad, alone["k"])


def test_layers_of_different_kinds():
    """A bank or a weight for some of the layers only; gradients for some only."""
    layers = [
        inputs((2, 9, 16), None, "log"),
        inputs((1, 7, 24), (5,), "", seed=20),
        inputs((2, 6, 24), (2, 11), "both", seed=40),
        inputs((1, 9, 16), None, "", seed=60),
    ]
    found = {}
    for impl, cast in (("triton", None), ("reference", None), ("reference", torch.float64)):
        own = [leaves(given, cast) for given in layers]
        own[0]["q"].requires_grad_(False)
        own[2]["negatives"].requires_grad_(False)
        own[3]["k"].requires_grad_(False)
        lists = {name: [t[name] for t in own] for name in (*NAMES, "similarity_weight")}
        q, k = lists.pop("q"), lists.pop("k")
        loss = patch_nce_loss(q, k, **lists, detach_keys=False, reduction="sum", temperature=2.0, impl=impl)
        loss.backward()
        grads = {f"{n}{i}": t[n].grad for i, t in enumerate(own) for n in NAMES if t[n] is not None}
        found[impl, cast] = {"loss": loss.detach()} | {n: g for n, g in grads.items() if g is not None}
    ours, torchs, exact = found.values()
    assert ours.keys() == exact.keys() and "q0" not in ours and "negatives2" not in ours and "k3" not in ours
    for name, want in exact.items():
        close(name, ours[name], torchs[name], want)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_with_row_weights(reduction, dtype):
    layers = several(dtype, MIXED[:2])
    found = []
    for impl, cast in (("triton", None), ("reference", torch.float64)):
        own = [leaves(given, cast) for given in layers]
        weight = [randn(*given["q"].shape[:2], seed=5).abs().to(cast or FLOAT) for given in layers]
        q, k = ([t[name] for t in own] for name in "qk")
        loss = patch_nce_loss(q, k, row_weight=weight, normalize=True, reduction=reduction, impl=impl)
        loss.backward()
        assert all(t.grad is None for t in k)
        found.append([loss.detach(), *(t.grad for t in q)])
    for got, want in zip(*found):
        eps = torch.finfo(got.dtype).eps
        assert (got.double() - want).abs().max() <= (8 if dtype == FLOAT else 4) * eps * want.abs().max()


# ---- which gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_one_gradient_alone_is_that_of_all(name, form, launched):
    given = inputs(*FORMS[form], "log")
    if given[name] is None:
        pytest.skip("no bank")
    every = outcome(given, "triton", normalize=True)
    launched.clear()
    own = {n: t if t is None else t.detach().clone().requires_grad_(n == name) for n, t in given.items()}
    q, k = own.pop("q"), own.pop("k")
    loss = patch_nce_loss(
        q, k, **own, temperature=0.3, normalize=True, detach_keys=False, reduction="none", impl="triton"
    )
    loss.backward(randn(*loss.shape, seed=99))
    wanted = (own | {"q": q, "k": k})[name].grad
    assert torch.equal(wanted, every[name])
    by_keys = name == "negatives" or (name == "k" and given["negatives"] is None)
    assert [n for n, _, _ in launched] == ["nce_forward", "nce_backward_keys" if by_keys else "nce_backward_rows"]


def test_no_gradients_at_all(launched):
    given = inputs((2, 9, 16))
    loss = patch_nce_loss(given["q"], given["k"], impl="triton")
    assert not loss.requires_grad and [name for name, _, _ in launched] == ["nce_forward"]


def test_statistics():
    for decoupled in (False, True):
        given = inputs((2, 9, 16), None, "both")
        given["similarity_weight"] = given["similarity_weight"].expand(2, 9, 9)
        layer = Layer(*given.values())
        loss, stats, units = launch_triton.forward([layer, layer], Spec(0.5, True, decoupled), [True, True])
        assert stats.shape == (3, 36) and [u.numel() for u in units] == [0, 0]
        unit = [t.double() / (t.double().norm(dim=-1, keepdim=True) + EPS) for t in layer[:2]]
        z = unit[0] @ unit[1].mT / 0.5 * layer.similarity_weight + layer.log_weight
        lse = z.masked_fill(torch.eye(9, dtype=torch.bool, device=DEVICE), float("-inf")).logsumexp(-1).flatten()
        pull = torch.sigmoid(lse - ((unit[0] * unit[1]).sum(-1) / 0.5).flatten())
        for half in (slice(0, 18), slice(18, 36)):
            torch.testing.assert_close(stats[LSE, half].double(), lse, rtol=0, atol=2e-6)
            want = torch.ones_like(pull) if decoupled else pull
            torch.testing.assert_close(stats[PULL, half].double(), want, rtol=2e-6, atol=0)
            want = 1 / (layer.q.double().norm(dim=-1).flatten() + EPS)
            torch.testing.assert_close(stats[INVERSE_NORM, half].double(), want, rtol=2e-6, atol=0)


# ---- data that break careless code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", [None, (40,)])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-7, 1e-4, 1e4, 1e15])
def test_norms_of_any_size(size, bank):
    check(inputs((1, 20, 24), bank, spread=size), normalize=True)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
def test_norms_of_all_sizes_together(dtype):
    given = inputs((1, 20, 24), (24,), dtype=dtype)
    scale = torch.logspace(-3, 3, 20, device=DEVICE)[:, None]
    given["q"], given["k"] = (given[n] * scale.to(dtype) for n in "qk")
    ours = check(given, normalize=True)
    exact = outcome(given, "reference", cast=torch.float64, normalize=True)
    for name in "qk":  # by row: the largest gradients are a million times the smallest
        relative = (ours[name].double() - exact[name]).norm(dim=-1) / exact[name].norm(dim=-1)
        assert relative.max() <= (2e-6 if dtype == FLOAT else 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bank", [None, (9,)])
def test_rows_of_zeros(bank, normalize, dtype):
    given = inputs((2, 7, 12), bank, dtype=dtype)
    given["q"][0, 2] = 0
    given["k"][1, 3] = 0
    if bank:
        given["negatives"][5] = 0
    ours = outcome(given, "triton", normalize=normalize)
    exact = outcome(given, "reference", cast=torch.float64, normalize=normalize)
    assert all(torch.isfinite(t).all() for t in ours.values())
    zeros = dict(q=(0, 2), k=(1, 3), negatives=(5,))
    for name in ours:
        if normalize and name in zeros:  # 1e7 times the others' gradients: apart
            row = ours[name][zeros[name]].double()
            want = exact[name][zeros[name]].clamp(-65504, 65504) if dtype == HALF else exact[name][zeros[name]]
            assert (row - want).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()
            exact[name][zeros[name]] = ours[name][zeros[name]].double()
        rest = exact[name].clone()
        if name in zeros and normalize:
            rest[zeros[name]] = 0
        assert (ours[name].double() - exact[name]).abs().max() <= 16 * torch.finfo(dtype).eps * rest.abs().max(), name


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_not_a_number(decoupled, normalize):
    """NaN in a query spoils its loss, in a key those of all queries that see it, in an image no other image's."""
    for name, spoilt in (("q", [(0, 4)]), ("k", [(0, i) for i in range(9)])):
        given = inputs((2, 9, 16))
        clean = outcome(given, "triton", normalize=normalize, decoupled=decoupled)
        given[name][0, 4, 3] = float("nan")
        ours = outcome(given, "triton", normalize=normalize, decoupled=decoupled)
        torchs = outcome(given, "reference", normalize=normalize, decoupled=decoupled)
        want = torch.zeros(2, 9, dtype=torch.bool, device=DEVICE)
        want[tuple(zip(*spoilt))] = True
        assert torch.equal(ours["loss"].isnan(), want)
        for n in ("loss", "q", "k"):
            assert ours[n].isnan()[torchs[n].isnan()].all(), n  # a spoilt row's own key may be spoilt more than torch's
            assert torch.equal(ours[n][1], clean[n][1])


@pytest.mark.parametrize("bank", [None, (9,)])
def test_left_out_by_weight(bank):
    """log_weight of -inf leaves a negative out; all but one may be."""
    given = inputs((2, 9, 16), bank, "log")
    given["log_weight"][:, ::2] = torch.where(randn(2, 5, 9, seed=8) > 0, given["log_weight"][:, ::2], float("-inf"))
    given["log_weight"][0, 1] = float("-inf")
    given["log_weight"][0, 1, 4] = 0.5
    ours = check(given, normalize=True)
    assert (ours["log_weight"][given["log_weight"] == float("-inf")] == 0).all()


def test_all_left_out():
    given = inputs((1, 9, 16), (7,), "log")
    given["log_weight"][0, 2] = float("-inf")
    ours = outcome(given, "triton")
    assert ours["loss"][0, 2] == 0 and (ours["log_weight"][0, 2] == 0).all() and (ours["q"][0, 2] == 0).all()
    assert all(torch.isfinite(t).all() for t in ours.values())


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_losses_far_from_one(scale):
    """Large margins both ways: a loss of 1e-20 has digits, one of 1000 no overflow."""
    given = inputs((1, 12, 16))
    given["k"] = given["q"] * scale
    given["k"][0, ::3] *= -1
    ours = check(given, temperature=0.07)
    exact = outcome(given, "reference", cast=torch.float64, temperature=0.07)
    assert torch.allclose(ours["loss"].double(), exact["loss"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("bank", [None, (2, 30)])
def test_tiny_gradients_of_float16(bank):
    """A mean's gradients of rows may be below what float16 holds; those of keys are made of many of them."""
    given = inputs((2, 12, 24), bank, dtype=HALF, spread=1e-3)
    gradient = randn(2, 12, seed=99) * 3e-8
    ours = outcome(given, "triton", gradient, normalize=True)
    exact = outcome(given, "reference", gradient, cast=torch.float64, normalize=True)
    for name, want in exact.items():
        error = (ours[name].double() - want).abs().max()
        assert error <= 4 * torch.finfo(HALF).eps * want.abs().max() + 3e-8, name  # + half a step of the smallest


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
def test_repeats_bit_for_bit(dtype):
    for form in FORMS.values():
        given = inputs(*form, "both", dtype)
        first, second = (outcome(given, "triton", normalize=True) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_tensors_that_are_not_dense():
    given = inputs((2, 9, 16), (11,), "both")
    apart = {n: t.repeat_interleave(2, -1)[..., ::2] for n, t in given.items()}
    assert not apart["q"].is_contiguous()
    ours, dense = outcome(apart, "triton"), outcome(given, "triton")
    own = leaves(given)
    flipped = own["q"].mT.contiguous().mT
    again = patch_nce_loss(flipped, own["k"].mT.contiguous().mT, reduction="none", impl="triton")
    assert torch.equal(again, patch_nce_loss(own["q"], own["k"], reduction="none", impl="triton"))
    assert all(torch.equal(ours[n], dense[n]) for n in dense)


@pytest.mark.parametrize("dtype", [BF16, HALF, torch.float64])
@pytest.mark.parametrize("shape", [(), (1, 1, 11), (9, 1), (2, 1, 1), (2, 9, 11)])
def test_weights_of_any_dtype_and_shape(shape, dtype):
    given = inputs((2, 9, 16), (11,))
    weights = {"log_weight": randn(*shape, seed=5).to(dtype), "similarity_weight": randn(*shape, seed=6).to(dtype)}
    wide = {n: t.float().expand(2, 9, 11).contiguous() for n, t in weights.items()}
    both = []
    for chosen in (weights, wide):
        own = leaves(given | chosen)
        q, k = own.pop("q"), own.pop("k")
        patch_nce_loss(q, k, **own, impl="triton").backward()
        both.append((q.grad, own["negatives"].grad, own["log_weight"].grad))
    assert torch.equal(both[0][0], both[1][0]) and torch.equal(both[0][1], both[1][1])
    want = both[1][2].sum_to_size(shape)
    assert both[0][2].dtype == dtype
    torch.testing.assert_close(both[0][2].float(), want, rtol=1e-5 if dtype == torch.float64 else 1e-2, atol=1e-6)


def test_one_problem_without_batch_dimension():
    given = inputs((1, 9, 16), (11,))
    want = patch_nce_loss(given["q"], given["k"], negatives=given["negatives"], reduction="none", impl="triton")
    got = patch_nce_loss(given["q"][0], given["k"][0], negatives=given["negatives"], reduction="none", impl="triton")
    assert torch.equal(got, want[0])


def test_no_rows(launched):
    q = torch.zeros(0, 4, 8, device=DEVICE)
    loss, stats, units = launch_triton.forward([Layer(q, q, None, None, None)], Spec(0.07, True, False), [True])
    needs = [(True, True, False, True)]
    ((dq, dk, dn, dw),) = launch_triton.backward(
        loss, [Layer(q, q, None, None, None)], stats, units, needs, Spec(0.07, True, False)
    )
    assert loss.shape == (0,) and stats.shape == (3, 0) and dq.shape == dk.shape == q.shape and dw.shape == (0, 4, 4)
    assert dn is None and not launched
