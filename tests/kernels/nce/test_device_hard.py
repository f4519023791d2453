"""Data and arguments that break careless code: as test_device.py, of which this is the other half."""

from __future__ import annotations

import pytest
import torch
from support.device_numerics import DEVICE
from support.nce_device_numerics import BF16, FLOAT, FORMS, HALF, check, inputs, leaves, outcome, randn

from kernels.nce import patch_nce_loss

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", [None, (40,)])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-7, 1e-4, 1e4, 1e15])
def test_norms_of_any_size(size, negatives, impl):
    check(impl, inputs((1, 20, 24), negatives, spread=size), normalize=True)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
def test_norms_of_all_sizes_together(dtype, impl):
    given = inputs((1, 20, 24), (24,), dtype=dtype)
    scale = torch.logspace(-3, 3, 20, device=DEVICE)[:, None]
    given["q"], given["k"] = (given[n] * scale.to(dtype) for n in "qk")
    ours = check(impl, given, normalize=True)
    exact = outcome(given, "reference", cast=torch.float64, normalize=True)
    for name in "qk":  # by row: the largest gradients are a million times the smallest
        relative = (ours[name].double() - exact[name]).norm(dim=-1) / exact[name].norm(dim=-1)
        assert relative.max() <= (2e-6 if dtype == FLOAT else 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("negatives", [None, (9,)])
def test_rows_of_zeros(negatives, normalize, dtype, impl):
    given = inputs((2, 7, 12), negatives, dtype=dtype)
    given["q"][0, 2] = 0
    given["k"][1, 3] = 0
    if negatives:
        given["negatives"][5] = 0
    ours = outcome(given, impl, normalize=normalize)
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
def test_not_a_number(decoupled, normalize, impl):
    """NaN in a query spoils its loss, in a key those of all queries that see it, in an image no other image's."""
    for name, spoilt in (("q", [(0, 4)]), ("k", [(0, i) for i in range(9)])):
        given = inputs((2, 9, 16))
        clean = outcome(given, impl, normalize=normalize, decoupled=decoupled)
        given[name][0, 4, 3] = float("nan")
        ours = outcome(given, impl, normalize=normalize, decoupled=decoupled)
        torchs = outcome(given, "reference", normalize=normalize, decoupled=decoupled)
        want = torch.zeros(2, 9, dtype=torch.bool, device=DEVICE)
        want[tuple(zip(*spoilt))] = True
        assert torch.equal(ours["loss"].isnan(), want)
        for n in ("loss", "q", "k"):
            assert ours[n].isnan()[torchs[n].isnan()].all(), n  # a spoilt row's own key may be spoilt more than torch's
            assert torch.equal(ours[n][1], clean[n][1])


@pytest.mark.parametrize("negatives", [None, (9,)])
def test_left_out_by_weight(negatives, impl):
    """log_weight of -inf leaves a negative out; all but one may be."""
    given = inputs((2, 9, 16), negatives, "log")
    given["log_weight"][:, ::2] = torch.where(randn(2, 5, 9, seed=8) > 0, given["log_weight"][:, ::2], float("-inf"))
    given["log_weight"][0, 1] = float("-inf")
    given["log_weight"][0, 1, 4] = 0.5
    ours = check(impl, given, normalize=True)
    assert (ours["log_weight"][given["log_weight"] == float("-inf")] == 0).all()


def test_all_left_out(impl):
    given = inputs((1, 9, 16), (7,), "log")
    given["log_weight"][0, 2] = float("-inf")
    ours = outcome(given, impl)
    assert ours["loss"][0, 2] == 0 and (ours["log_weight"][0, 2] == 0).all() and (ours["q"][0, 2] == 0).all()
    assert all(torch.isfinite(t).all() for t in ours.values())


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_losses_far_from_one(scale, impl):
    """Large margins both ways: a loss of 1e-20 has digits, one of 1000 no overflow."""
    given = inputs((1, 12, 16))
    given["k"] = given["q"] * scale
    given["k"][0, ::3] *= -1
    ours = check(impl, given, temperature=0.07)
    exact = outcome(given, "reference", cast=torch.float64, temperature=0.07)
    assert torch.allclose(ours["loss"].double(), exact["loss"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("negatives", [None, (2, 30)])
def test_tiny_gradients_of_float16(negatives, impl):
    """A mean's gradients of rows may be below what float16 holds; those of keys are made of many of them."""
    given = inputs((2, 12, 24), negatives, dtype=HALF, spread=1e-3)
    gradient = randn(2, 12, seed=99) * 3e-8
    ours = outcome(given, impl, gradient, normalize=True)
    exact = outcome(given, "reference", gradient, cast=torch.float64, normalize=True)
    for name, want in exact.items():
        error = (ours[name].double() - want).abs().max()
        assert error <= 4 * torch.finfo(HALF).eps * want.abs().max() + 3e-8, name  # + half a step of the smallest


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_repeats_bit_for_bit(dtype, impl):
    for form in FORMS.values():
        given = inputs(*form, "both", dtype)
        first, second = (outcome(given, impl, normalize=True) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_tensors_that_are_not_dense(impl):
    given = inputs((2, 9, 16), (11,), "both")
    apart = {n: t.repeat_interleave(2, -1)[..., ::2] for n, t in given.items()}
    assert not apart["q"].is_contiguous()
    ours, dense = outcome(apart, impl), outcome(given, impl)
    own = leaves(given)
    flipped = own["q"].mT.contiguous().mT
    again = patch_nce_loss(flipped, own["k"].mT.contiguous().mT, reduction="none", impl=impl)
    assert torch.equal(again, patch_nce_loss(own["q"], own["k"], reduction="none", impl=impl))
    assert all(torch.equal(ours[n], dense[n]) for n in dense)


@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("negatives", [None, (11,)])
def test_tensors_that_begin_anywhere(negatives, dtype, impl):
    """One element beyond where a vector could be read. Logits of at most 1: their sums are taken in another order."""
    given = inputs((2, 9, 16), negatives, dtype=dtype)
    apart = {n: t if t is None else t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t) for n, t in given.items()}
    found = []
    for tensors in (given, apart):
        own = {n: t if t is None else t.requires_grad_() for n, t in tensors.items()}
        q, k = own["q"], own["k"]
        options = dict(negatives=own["negatives"], temperature=1.0, normalize=True, detach_keys=False, impl=impl)
        loss = patch_nce_loss(q, k, **options, reduction="none")
        loss.backward(randn(2, 9, seed=99).to(dtype))
        found.append([loss.detach(), *(t.grad for t in own.values() if t is not None)])
    for want, got in zip(*found):
        assert (got - want).abs().max() <= 4 * torch.finfo(got.dtype).eps * want.abs().max()


@pytest.mark.parametrize("dtype", [BF16, HALF, torch.float64])
@pytest.mark.parametrize("shape", [(), (1, 1, 11), (9, 1), (2, 1, 1), (2, 9, 11)])
def test_weights_of_any_dtype_and_shape(shape, dtype, impl):
    given = inputs((2, 9, 16), (11,))
    weights = {"log_weight": randn(*shape, seed=5).to(dtype), "similarity_weight": randn(*shape, seed=6).to(dtype)}
    wide = {n: t.float().expand(2, 9, 11).contiguous() for n, t in weights.items()}
    both = []
    for chosen in (weights, wide):
        own = leaves(given | chosen)
        q, k = own.pop("q"), own.pop("k")
        patch_nce_loss(q, k, **own, impl=impl).backward()
        both.append((q.grad, own["negatives"].grad, own["log_weight"].grad))
    assert torch.equal(both[0][0], both[1][0]) and torch.equal(both[0][1], both[1][1])
    want = both[1][2].sum_to_size(shape)
    assert both[0][2].dtype == dtype
    torch.testing.assert_close(both[0][2].float(), want, rtol=1e-5 if dtype == torch.float64 else 1e-2, atol=1e-6)


def test_one_problem_without_batch_dimension(impl):
    given = inputs((1, 9, 16), (11,))
    want = patch_nce_loss(given["q"], given["k"], negatives=given["negatives"], reduction="none", impl=impl)
    got = patch_nce_loss(given["q"][0], given["k"][0], negatives=given["negatives"], reduction="none", impl=impl)
    assert torch.equal(got, want[0])
