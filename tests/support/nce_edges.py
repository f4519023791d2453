"""Infinite, missing and undefined numbers in the inputs of patch_nce_loss, and what it must make of them: the float64
formula in plain torch. Shared by test_edges.py and test_device_edges.py of the nce room."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.nce_numerics import problem

import kernels

Tensor = torch.Tensor
INF, NAN = float("inf"), float("nan")

FORMS = {"image": {}, "shared negatives": {"m": 9}, "own negatives": {"m": 9, "shared": False}}
OPTIONS = [{"normalize": n, "decoupled": d} for n in (False, True) for d in (False, True)]


def formula(q, k, negatives=None, log_weight=None, similarity_weight=None, *, normalize, decoupled, temperature):
    """Losses as the docstring of patch_nce_loss has them. A row without negatives is a sum of nothing: its logarithm is
    -inf and has no gradient to give (torch.logsumexp's is nan)."""

    def unit(x):
        return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-7)

    n = k if negatives is None else negatives
    if normalize:
        q, k, n = unit(q), unit(k), unit(n)
    positive = (q * k).sum(-1) / temperature
    z = q @ n.mT / temperature
    if negatives is None:  # what weights say of a query's own key is of no account
        itself = torch.eye(q.shape[1], dtype=torch.bool, device=q.device)
        similarity_weight = None if similarity_weight is None else similarity_weight.masked_fill(itself, 1.0)
    if similarity_weight is not None:
        z = z * similarity_weight
    if log_weight is not None:
        z = z + log_weight
    if negatives is None:
        z = z.masked_fill(itself, -INF)
    nothing = (z == -INF).all(-1)
    lse = torch.where(nothing, -INF, torch.logsumexp(torch.where(nothing[..., None], 0.0, z), -1))
    margin = lse - positive
    return margin if decoupled else -F.logsigmoid(-margin)


def _weight(name, at, value):
    def spoil(given):
        given[name][at] = value

    return spoil


def _negative(value):
    def spoil(given):
        given["negatives" if "negatives" in given else "k"][..., 3, 1] = value

    return spoil


# what is done to inputs of 2 problems, 6 queries, 5 numbers, 6 or 9 negatives
CASES = {
    "one negative left out": _weight("log_weight", (0, 2, 3), -INF),
    "all but one left out": lambda given: (_weight("log_weight", (0, 2), -INF), _weight("log_weight", (0, 2, 4), 0.5)),
    "all of a row left out": _weight("log_weight", (0, 2), -INF),
    "all of a problem left out": _weight("log_weight", (1,), -INF),
    "all left out": _weight("log_weight", ..., -INF),
    "infinite log weight": _weight("log_weight", (0, 2, 3), INF),
    "infinite log weights": _weight("log_weight", (0, 2), INF),
    "undefined log weight": _weight("log_weight", (0, 2, 3), NAN),
    "log weights of a query's own key": _weight("log_weight", (0, range(6), range(6)), INF),
    "similarity weights of 0": _weight("similarity_weight", (0, 2), 0.0),
    "infinite similarity weight": _weight("similarity_weight", (0, 2, 3), INF),
    "negative infinite similarity weight": _weight("similarity_weight", (0, 2, 3), -INF),
    "similarity weights of a query's own key": _weight("similarity_weight", (0, range(6), range(6)), INF),
    "infinite negative": _negative(INF),
    "infinite negative, the other sign": _negative(-INF),
    "undefined negative": _negative(NAN),
    "infinite query": _weight("q", (1, 4, 2), INF),
    "infinite key": _weight("k", (1, 4, 2), -INF),
    "undefined query": _weight("q", (1, 4, 2), NAN),
}


def spoilt(form: str, case: str) -> dict[str, Tensor]:
    given = problem(2, 6, 5, weights=True, **FORMS[form])
    CASES[case](given)
    return given


def results(f, given: dict, dtype: torch.dtype, device: str, **options) -> dict[str, Tensor]:
    """Losses and gradients, for a gradient of 1, 2, 3, ... of the rows."""
    own = {name: t.detach().to(device, dtype).requires_grad_(name != "similarity_weight") for name, t in given.items()}
    losses = f(**own, **options)
    wanted = [name for name in own if name != "similarity_weight"]
    g = torch.arange(1.0, losses.numel() + 1, dtype=losses.dtype, device=device).view(losses.shape)
    return {"losses": losses.detach()} | dict(zip(wanted, torch.autograd.grad(losses, [own[n] for n in wanted], g)))


def hold(impl: str, form: str, case: str, dtype: torch.dtype, device: str = "cpu") -> None:
    """Losses are those of the formula, infinities and NaN too; gradients are finite where its are, and equal there.

    Triton's gradients may have more NaN in a problem that has a NaN for a loss, never fewer: the own key of such a row
    is left out by a probability of 0, which is NaN there."""
    given = {name: t.to(dtype).double() for name, t in spoilt(form, case).items()}
    for options in OPTIONS:
        exact = results(formula, given, torch.float64, device, temperature=0.5, **options)
        got = results(
            kernels.patch_nce_loss, given, dtype, device, temperature=0.5, **options,
            impl=impl, detach_keys=False, reduction="none",
        )  # fmt: skip
        torch.testing.assert_close(got["losses"].double(), exact["losses"], rtol=1e-4, atol=1e-5, equal_nan=True)
        lost = exact["losses"].isnan().any(1)  # problems
        for name, want in exact.items():
            finite, ours = want.isfinite(), got[name].isfinite()
            assert not (ours & ~finite).any(), (options, name)
            if impl != "triton" or not lost.any():
                assert torch.equal(ours, finite), (options, name)
            elif want.dim() > 2 or name == "losses":
                assert torch.equal(ours[~lost], finite[~lost]), (options, name)
            size = want[ours].abs().max().item() if ours.any() else 0.0
            eps = max(torch.finfo(dtype).eps, 1e-6)
            torch.testing.assert_close(
                got[name].double()[ours], want[ours], rtol=0, atol=8 * eps * size, msg=lambda m: f"{name} {options} {m}"
            )


# ---- nothing to compute ----------------------------------------------------------------------------------------------

NAMES = ("q", "k", "negatives", "log_weight")
BATCHES = [(0,), (0, 2), (2, 0), (2, 0, 1), (0, 0)]  # of the layers of a call


def hold_empty(impl: str, form: str, batches: tuple[int, ...], rows: int, device: str = "cpu") -> None:
    """Losses and gradients of layers of which some have no images: those of the formula, zeros where there is nothing.
    Whatever gradients are asked for."""
    for options in OPTIONS[::3]:
        layers = [problem(b, rows, 5, weights=True, seed=i, **FORMS[form]) for i, b in enumerate(batches)]
        exact = [_sums(formula, [layer], NAMES, torch.float64, device, **options) for layer in layers]
        for asked in (NAMES, *((name,) for name in NAMES if name in layers[0])):
            loss, grads = _sums(_ours(impl), layers, asked, torch.float32, device, **options)
            torch.testing.assert_close(loss.double(), sum(e[0] for e in exact), rtol=1e-4, atol=1e-5)
            for i, of_layer in enumerate(grads):
                for name, got in of_layer.items():
                    want = exact[i][1][0][name]
                    assert got.shape == want.shape
                    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4, msg=f"{name} {i} {options}")


def _ours(impl):
    def f(**lists):
        return kernels.patch_nce_loss(**lists, impl=impl, detach_keys=False, reduction="none")

    return f


def _sums(f, layers, asked, dtype, device, **options):
    """(sum of all losses, gradients asked for by name, a dict per layer). f takes lists, but for the formula."""
    own = [
        {name: t.detach().to(device, dtype).requires_grad_(name in asked) for name, t in layer.items()}
        for layer in layers
    ]
    if f is formula:
        losses = [f(**layer, **options, temperature=0.5) for layer in own]
    else:
        lists = {name: [layer[name] for layer in own] for name in own[0]}
        losses = f(**lists, **options, temperature=0.5)
    loss = torch.stack([t.sum() for t in losses]).sum()
    wanted = [(i, name) for i, layer in enumerate(own) for name in layer if name in asked]
    found = [{} for _ in own]
    for (i, name), grad in zip(wanted, torch.autograd.grad(loss, [own[i][name] for i, name in wanted])):
        found[i][name] = grad
    return loss.detach(), found
