"""The C++ losses against float64, on every instruction set this machine runs."""

import pytest
import torch
from support.nce_numerics import check, ours, outcome, problem, rounded, stock
from support.numerics import LEVELS, error, instruction_set

import kernels

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])

# b, s, c, m, what they exercise
SIZES = [
    (2, 9, 5, None, "less than a vector, less than a tile"),
    (1, 2, 16, None, "a single negative"),
    (2, 33, 37, None, "one lane of a second tile, odd width"),
    (3, 64, 32, None, "whole tiles"),
    (1, 256, 256, None, "CUT's; several blocks of keys"),
    (1, 129, 66, None, "one key in the second block; an even width that fills no vector"),
    (2, 5, 300, None, "wide rows, sums in pieces"),
    (2, 9, 16, 1, "one negative"),
    (2, 33, 38, 130, "negatives of a block and a rest"),
    (1, 300, 64, 257, "more queries than a task takes"),
    (2, 48, 64, 144, "keys of a tile and a half behind a block, read where they lie"),
]
OPTIONS = [{}, {"normalize": True}, {"decoupled": True}, {"normalize": True, "decoupled": True, "temperature": 0.5}]


def hold(given, dtype, options, what):
    given = rounded(given, dtype)
    exact = outcome(ours("reference", **options), given, torch.float64)
    torchs = outcome(stock(**options), given, dtype)
    got = outcome(ours("cpu", **options), given, dtype)
    assert got["losses"].dtype == torch.float32
    for name in given:
        if name != "similarity_weight":
            assert got[f"d{name}"].dtype == dtype
    check(got, torchs, exact, dtype, what)


@DTYPES
@pytest.mark.parametrize("size", SIZES, ids=[s[-1] for s in SIZES])
def test_rule(isa, size, dtype, poisoned):
    b, s, c, m, _ = size
    for i, options in enumerate(OPTIONS):
        for shared in (True, False) if m else (True,):
            given = problem(b, s, c, m, shared=shared, weights=i % 2 == 1, seed=i)
            hold(given, dtype, options, (isa, options, shared))


@DTYPES
def test_rule_at_the_temperature_and_at_large_norms(isa, dtype):
    """Rows of norm 300 have squares beyond float16, rows of norm 1e-3 have squares below it."""
    for size in (300.0, 1e-3):
        given = problem(2, 40, 64)
        given = {name: t * size for name, t in given.items()}
        hold(given, dtype, {"normalize": True}, (isa, size))


@pytest.mark.parametrize("decoupled", [False, True])
def test_small_losses_keep_their_digits(isa, decoupled):
    """log(1 + e^-20) and its gradient, where 1 - p rounds to nothing, and where published code returns 0."""
    q = torch.eye(40, 64, dtype=torch.float64)[None]
    given = {"q": q, "k": q.clone()}
    options = {"temperature": 0.05, "decoupled": decoupled}
    exact = outcome(ours("reference", **options), given, torch.float64)
    got = outcome(ours("cpu", **options), given, torch.float32)
    for name, want in exact.items():
        assert want.abs().max() > 0
        torch.testing.assert_close(got[name].double(), want, rtol=1e-5, atol=1e-7 * want.abs().max().item())


def test_bfloat16_positive_term_is_not_rounded():
    """Near the optimum p - 1 is tiny; subtracting k from a rounded sum would leave an error of 12 % of the gradient."""
    generator = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(1, 256, 256, generator=generator), dim=-1)
    given = rounded({"q": q.double(), "k": q.double()}, torch.bfloat16)
    exact = outcome(ours("reference"), given, torch.float64)
    got = outcome(ours("cpu"), given, torch.bfloat16)
    for name in ("dq", "dk"):
        assert error(got[name], exact[name]) < 0.01 * exact[name].abs().max(), name


@DTYPES
def test_rows_of_zeros(isa, dtype):
    """With normalisation their gradient is that of row / 1e-7: large, never NaN, and no infinity in float16."""
    given = rounded(problem(2, 40, 64), dtype)
    given["q"][0, 3] = given["k"][0, 3] = given["k"][1, 5] = 0
    for options in ({"normalize": True}, {}):
        exact = outcome(ours("reference", **options), given, torch.float64)
        got = outcome(ours("cpu", **options), given, dtype)
        limit = 65504.0 if dtype == torch.float16 else float("inf")
        for name, want in exact.items():
            want = want.clamp(-limit, limit)
            assert got[name].isfinite().all(), name
            eps = torch.finfo(dtype).eps
            for row, wanted in zip(got[name].flatten(0, 1), want.flatten(0, 1)):  # each to its own size
                torch.testing.assert_close(
                    row.double(), wanted, rtol=4 * eps, atol=(8 * eps) * wanted.abs().max() + 1e-5
                )


def test_not_a_number_stays_in_its_rows(isa):
    given = {name: t.float() for name, t in problem(1, 40, 16, 200).items()}
    given["q"][0, 7, 3] = float("nan")
    losses = kernels.patch_nce_loss(**given, reduction="none")
    assert losses[0, 7].isnan() and losses[0].isnan().sum() == 1
    given["negatives"][150, 0] = float("nan")
    assert kernels.patch_nce_loss(**given, reduction="none").isnan().all()


def test_negatives_left_out_by_a_weight(isa):
    """log weight -inf takes a negative out: as if it were not there."""
    given = problem(2, 20, 16, 150)
    kept = torch.arange(150) % 3 > 0
    smaller = given | {"negatives": given["negatives"][kept]}
    log_weight = torch.zeros(150).masked_fill(~kept, float("-inf"))
    for options in ({}, {"decoupled": True, "normalize": True}):
        want = outcome(ours("cpu", **options), smaller, torch.float32)
        got = outcome(ours("cpu", log_weight=log_weight, **options), given, torch.float32)
        torch.testing.assert_close(got["losses"], want["losses"])
        torch.testing.assert_close(got["dq"], want["dq"])
        torch.testing.assert_close(got["dnegatives"][kept], want["dnegatives"])
        assert not got["dnegatives"][~kept].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_same_bits_for_any_number_of_threads(isa, dtype):
    given = problem(3, 100, 40, 300, weights=True)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            results.append(outcome(ours("cpu", normalize=True), given, dtype))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, t in results[0].items():
            assert torch.equal(t, other[name]), name


def test_instruction_sets_agree():
    """A row's bits may differ between instruction sets, its value may not."""
    given, results = problem(2, 70, 40), []
    for level in LEVELS:
        with instruction_set(level):
            results.append(outcome(ours("cpu"), given, torch.float32))
    for other in results[1:]:
        for name, t in results[0].items():
            torch.testing.assert_close(other[name], t, rtol=1e-4, atol=1e-5)


def test_inputs_of_any_strides():
    given = {name: t.float() for name, t in problem(2, 30, 16).items()}
    want = kernels.patch_nce_loss(**given, reduction="none")
    apart = {name: t.transpose(1, 2).contiguous().transpose(1, 2) for name, t in given.items()}
    assert torch.equal(kernels.patch_nce_loss(**apart, reduction="none"), want)
    wide = {name: torch.cat([t, t], -1)[..., :16] for name, t in given.items()}
    assert torch.equal(kernels.patch_nce_loss(**wide, reduction="none"), want)


def test_weights_broadcast():
    given = {name: t.float() for name, t in problem(2, 6, 8, 5).items()}
    full = torch.randn(2, 6, 5)
    for shape in ((), (5,), (6, 1), (1, 6, 5), (2, 1, 5), (2, 6, 5)):
        small = (
            full[tuple(slice(0, n) for n in (1,) * (3 - len(shape)) + shape)].reshape(shape).clone().requires_grad_()
        )
        got = []
        for impl in ("reference", "cpu"):
            loss = kernels.patch_nce_loss(**given, log_weight=small, similarity_weight=small.detach().exp(), impl=impl)
            got.append([loss, *torch.autograd.grad(loss, small)])
        torch.testing.assert_close(got[0], got[1], rtol=1e-4, atol=1e-5)
        assert got[1][1].shape == shape
