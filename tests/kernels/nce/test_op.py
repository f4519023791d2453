"""patch_nce_loss as a function: derivatives to second order, lists, torch.compile, memory, bad arguments."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.nce_numerics import ours, outcome, problem
from support.numerics import error

import kernels
from kernels.nce.spec import Spec

NAN = float("nan")


# ---- derivatives -----------------------------------------------------------------------------------------------------

NEGATIVES = {"image": {}, "shared negatives": {"m": 4}, "own negatives": {"m": 4, "shared": False}}
OPTIONS = {
    "plain": {},
    "normalize": {"normalize": True},
    "decoupled": {"decoupled": True},
    "decoupled normalize": {"decoupled": True, "normalize": True, "temperature": 0.3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("negatives", NEGATIVES.values(), ids=NEGATIVES)
def test_first_and_second_derivative_in_float64(negatives, options):
    """With log weights, similarity weights and row weights; gradients to everything that can have one."""
    given = problem(2, 3, 2, weights=True, **negatives)
    fixed = {"similarity_weight": given.pop("similarity_weight"), "temperature": 0.3} | options
    row_weight = torch.rand(2, 3, dtype=torch.float64)
    names = [*given, "row_weight"]
    inputs = [t.requires_grad_() for t in (*given.values(), row_weight)]

    def f(*tensors):
        return kernels.patch_nce_loss(**dict(zip(names, tensors)), detach_keys=False, reduction="none", **fixed)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("negatives", NEGATIVES.values(), ids=NEGATIVES)
def test_second_derivative_of_the_fused_path(negatives):
    given = problem(2, 6, 8, weights=True, **negatives)
    weight = given.pop("similarity_weight")

    def penalty(dtype):
        inputs = {name: t.to(dtype).detach().requires_grad_() for name, t in given.items()}
        rows = kernels.patch_nce_loss(
            **inputs, similarity_weight=weight, detach_keys=False, reduction="none", normalize=True, temperature=0.5
        )
        first = torch.autograd.grad((rows * rows.detach().cos()).sum(), inputs.values(), create_graph=True)
        return torch.autograd.grad(sum((g.double() ** 2).sum() for g in first), inputs.values())

    for got, want in zip(penalty(torch.float32), penalty(torch.float64)):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4 * max(1.0, want.abs().max().item()))


@pytest.mark.parametrize("negatives", NEGATIVES.values(), ids=NEGATIVES)
def test_gradients_only_where_asked(negatives):
    given = problem(2, 6, 8, weights=True, **negatives)
    full = outcome(ours("cpu"), given, torch.float32)
    g = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
    for asked in (name for name in given if name != "similarity_weight"):
        inputs = {name: t.float().requires_grad_(name == asked) for name, t in given.items()}
        (grad,) = torch.autograd.grad(ours("cpu")(**inputs), inputs[asked], g)
        assert torch.equal(grad, full[f"d{asked}"]), asked


def test_keys_are_detached_unless_told_otherwise_and_the_graph_can_be_kept():
    q, k = (t.float().requires_grad_() for t in problem(2, 6, 8).values())
    loss = kernels.patch_nce_loss(q, k)
    loss.backward(retain_graph=True)
    first = q.grad.clone()
    loss.backward()
    assert torch.equal(q.grad, 2 * first) and k.grad is None
    kernels.patch_nce_loss(q, k, detach_keys=False).backward()
    assert k.grad is not None


def test_queries_that_are_their_own_keys():
    x = problem(1, 9, 8)["q"]
    results = []
    for impl, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        y = x.to(dtype).requires_grad_()
        loss = kernels.patch_nce_loss(y, y, detach_keys=False, negatives=y[0], impl=impl)
        results.append([loss.double(), torch.autograd.grad(loss, y)[0].double()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


# ---- lists, reductions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_a_list_is_its_layers(impl):
    layers = [problem(2, 40, 8, seed=1), problem(1, 9, 33, 70, seed=2), problem(3, 5, 4, 6, shared=False, seed=3)]
    layers = [{name: t.float() for name, t in layer.items()} for layer in layers]
    layers[0]["log_weight"] = torch.randn(40, 40)
    weights = [None, torch.rand(9), torch.rand(3, 5)]

    def column(name):
        return [layer.get(name) for layer in layers]

    q = [t.clone().requires_grad_() for t in column("q")]
    for reduction in ("none", "mean", "sum"):
        alone = [
            kernels.patch_nce_loss(**(layer | {"q": x}), row_weight=w, reduction=reduction, impl=impl)
            for layer, x, w in zip(layers, q, weights)
        ]
        together = kernels.patch_nce_loss(
            q,
            column("k"),
            negatives=column("negatives"),
            log_weight=column("log_weight"),
            row_weight=weights,
            reduction=reduction,
            impl=impl,
        )
        want = alone if reduction == "none" else sum(alone) / (3 if reduction == "mean" else 1)
        torch.testing.assert_close(together, want)
        if reduction == "mean":
            torch.testing.assert_close(torch.autograd.grad(together, q), torch.autograd.grad(want, q))


def test_one_mean_for_layers_of_one_size():
    layers = [{name: t.float() for name, t in problem(2, 8, c, seed=c).items()} for c in (4, 7)]
    q, k = ([layer[name] for layer in layers] for name in "qk")
    want = sum(kernels.patch_nce_loss(*pair) for pair in zip(q, k)) / 2
    torch.testing.assert_close(kernels.patch_nce_loss(q, k), want)
    torch.testing.assert_close(kernels.patch_nce_loss(tuple(q), tuple(k), reduction="sum"), want * 2 * 16)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_rows_without_batch_dimension(impl):
    given = {name: t.float() for name, t in problem(1, 9, 8, 5).items()}
    flat = {name: t[0] if t.dim() == 3 else t for name, t in given.items()}
    got = kernels.patch_nce_loss(**flat, reduction="none", impl=impl)
    assert got.shape == (9,)
    torch.testing.assert_close(got, kernels.patch_nce_loss(**given, reduction="none", impl=impl)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_losses_are_float32(impl, dtype):
    q, k = (t.to(dtype) for t in problem(2, 6, 8).values())
    for reduction in ("none", "mean", "sum"):
        assert kernels.patch_nce_loss(q, k, reduction=reduction, impl=impl).dtype == torch.float32


def test_an_empty_batch():
    q = torch.zeros(0, 6, 8, requires_grad=True)
    loss = kernels.patch_nce_loss(q, q.detach(), reduction="sum")
    assert loss == 0
    assert torch.autograd.grad(loss, q)[0].shape == (0, 6, 8)


# ---- torch.compile, autocast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(backend):
    torch._dynamo.reset()
    layers = [problem(2, 9, 8, weights=True, seed=1), problem(1, 7, 4, weights=True, seed=2)]

    def op(*tensors):
        q, k, log_weight, similarity_weight = (list(tensors[i::4]) for i in range(4))
        loss = kernels.patch_nce_loss(
            [x * 1.0 for x in q],
            k,
            log_weight=log_weight,
            similarity_weight=[w.detach() for w in similarity_weight],
            normalize=True,
            detach_keys=False,
        )
        return loss * 2.0

    inputs = [t.float().requires_grad_() for layer in layers for t in layer.values()]
    wanted = [t for i, t in enumerate(inputs) if i % 4 != 3]
    results = []
    for f in (op, torch.compile(op, fullgraph=True, backend=backend)):
        loss = f(*inputs)
        results.append([loss, *torch.autograd.grad(loss, wanted)])
    torch.testing.assert_close(*results)


def test_compiles_with_a_bank_one_tensor_twice_and_dynamic_shapes():
    torch._dynamo.reset()
    f = torch.compile(
        lambda q, negatives: kernels.patch_nce_loss(q, q, negatives=negatives),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for rows in (5, 8, 13):
        given = problem(2, rows, 8, rows + 3)
        q, negatives = given["q"].float().requires_grad_(), given["negatives"].float()
        results = []
        for g in (f, lambda q, negatives: kernels.patch_nce_loss(q, q, negatives=negatives)):
            loss = g(q, negatives)
            results.append([loss, torch.autograd.grad(loss, q)[0]])
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("negatives", NEGATIVES.values(), ids=NEGATIVES)
def test_opcheck(negatives):
    given = {name: t.float() for name, t in problem(2, 6, 8, weights=True, **negatives).items()}
    lists = [[given.get(name)] for name in ("q", "k", "negatives", "log_weight", "similarity_weight")]
    spec = (*Spec(0.07, True, False), "cpu")
    torch.library.opcheck(torch.ops.fused_i2i.nce_forward.default, (*lists, [True], *spec))
    loss, stats, *dq_unscaled = torch.ops.fused_i2i.nce_forward(*lists, [True], *spec)
    needs = [True, True, "negatives" in given, True]
    torch.library.opcheck(
        torch.ops.fused_i2i.nce_backward.default, (torch.ones_like(loss), *lists, stats, dq_unscaled, needs, *spec)
    )


def test_autocast_leaves_float32_alone():
    q, k = (t.float() for t in problem(2, 40, 16).values())
    want = kernels.patch_nce_loss(q, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kernels.patch_nce_loss(q, k), want)


# ---- memory ----------------------------------------------------------------------------------------------------------

BANK_MEMORY = """
import resource, torch, kernels
torch.manual_seed(0)
small = torch.randn(2, 8, 16, requires_grad=True)
kernels.patch_nce_loss(small, small.detach(), negatives=torch.randn(9, 16), normalize=True).backward()  # loads, builds
q = torch.randn(4, 256, 256, requires_grad=True)
k, bank = torch.randn(4, 256, 256), torch.randn(65536, 256)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernels.patch_nce_loss(q, k, negatives=bank, normalize=True).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_bank_of_65536_takes_no_matrix_of_logits():
    """4 x 256 queries against 65536 x 256, forward and backward: the logits alone would be 256 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", BANK_MEMORY], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 96 * 2**20


# ---- bad arguments ---------------------------------------------------------------------------------------------------

Q = torch.zeros(2, 5, 4)
K = torch.zeros(2, 5, 4)
BAD = [
    (lambda: kernels.patch_nce_loss([[1.0]], K), TypeError, r"k: got torch.float32, want a list of 1"),
    (lambda: kernels.patch_nce_loss(None, K), TypeError, "q: got NoneType, want a tensor or a list"),
    (lambda: kernels.patch_nce_loss([], []), ValueError, "q: got an empty list"),
    (lambda: kernels.patch_nce_loss([Q], [K, K]), ValueError, "k: got 2 entries, want 1"),
    (lambda: kernels.patch_nce_loss([Q, Q], [K, K[:, :3]]), ValueError, r"k\[1\]: got shape \(2, 3, 4\), want q\[1\]"),
    (lambda: kernels.patch_nce_loss([Q, Q.half()], [K, K.half()]), TypeError, r"q\[1\]: got torch.float16"),
    (lambda: kernels.patch_nce_loss(Q.int(), K), TypeError, "q: got torch.int32"),
    (lambda: kernels.patch_nce_loss(Q[0, 0], K), ValueError, r"q: got shape \(4,\)"),
    (lambda: kernels.patch_nce_loss(Q[:, :0], K[:, :0]), ValueError, "q: .*at least one row"),
    (lambda: kernels.patch_nce_loss(Q, K[:1]), ValueError, r"k: got shape \(1, 5, 4\), want q's \(2, 5, 4\)"),
    (lambda: kernels.patch_nce_loss(Q, K.double()), TypeError, "k: got torch.float64, want q's torch.float32"),
    (lambda: kernels.patch_nce_loss(Q, K.to("meta")), ValueError, "k: got device meta"),
    (lambda: kernels.patch_nce_loss(Q[:, :1], K[:, :1]), ValueError, "k: got 1 key a problem, want at least 2"),
    (lambda: kernels.patch_nce_loss(Q, K, negatives=Q[0, :0]), ValueError, r"negatives: got shape \(0, 4\).*M >= 1"),
    (lambda: kernels.patch_nce_loss(Q, K, negatives=torch.zeros(7, 3)), ValueError, r"negatives: got shape \(7, 3\)"),
    (lambda: kernels.patch_nce_loss(Q, K, negatives=torch.zeros(3, 7, 4)), ValueError, r"\(M, 4\) or \(2, M, 4\)"),
    (lambda: kernels.patch_nce_loss(Q, K, negatives=Q.half()), TypeError, "negatives: got torch.float16"),
    (lambda: kernels.patch_nce_loss(Q, K, temperature=0.0), ValueError, "temperature: got 0.0, want a number > 0"),
    (lambda: kernels.patch_nce_loss(Q, K, temperature=-1), ValueError, "temperature: got -1"),
    (lambda: kernels.patch_nce_loss(Q, K, temperature=NAN), ValueError, "temperature: got nan, want a finite"),
    (lambda: kernels.patch_nce_loss(Q, K, temperature="hot"), TypeError, "temperature: got str"),
    (lambda: kernels.patch_nce_loss(Q, K, normalize=1), TypeError, "normalize: got int"),
    (lambda: kernels.patch_nce_loss(Q, K, reduction="avg"), ValueError, "reduction: got 'avg'"),
    (lambda: kernels.patch_nce_loss(Q, K, impl="gpu"), ValueError, "impl: got 'gpu'"),
    (
        lambda: kernels.patch_nce_loss(Q.double(), K.double(), impl="cpu"),
        kernels.BackendUnavailable,
        "not torch.float64",
    ),
    (lambda: kernels.patch_nce_loss(Q, K, log_weight=torch.zeros(4)), ValueError, r"log_weight: got shape \(4,\)"),
    (lambda: kernels.patch_nce_loss(Q, K, similarity_weight=torch.ones(3, 5, 5)), ValueError, "similarity_weight: got"),
    (
        lambda: kernels.patch_nce_loss(Q, K, similarity_weight=torch.ones(5, 5, requires_grad=True)),
        ValueError,
        "similarity_weight: requires a gradient",
    ),
    (lambda: kernels.patch_nce_loss(Q, K, row_weight=torch.ones(2, 4)), ValueError, r"row_weight: got shape \(2, 4\)"),
    (lambda: kernels.patch_nce_loss([Q], [K], row_weight=torch.ones(5)), TypeError, "row_weight: got torch.float32"),
    (lambda: kernels.PatchNCELoss(temperature=0), ValueError, "temperature: got 0"),
    (lambda: kernels.PatchNCELoss(num_patches=0), ValueError, "num_patches: got 0"),
    (lambda: kernels.PatchNCELoss(num_patches=2.5), TypeError, "num_patches: got float"),
    (lambda: kernels.PatchNCELoss(num_patches=4)(Q[0], K[0]), ValueError, "feat_q: got 5 rows, want a multiple of"),
    (lambda: kernels.PatchNCELoss()(Q[0], K[0], batch_size=2), ValueError, "batch_size: got 2 for 5 rows"),
    (lambda: kernels.PatchNCELoss()(Q[0], K), ValueError, "feat_k: got"),
    (lambda: kernels.PatchNCELoss()(Q[0], None), TypeError, "feat_k: got"),
    (lambda: kernels.PatchNCELoss()(Q[0], K[0].double()), TypeError, "feat_k: got torch.float64"),
    (lambda: kernels.PatchNCELoss(all_negatives="no"), TypeError, "all_negatives: got str"),
    (lambda: kernels.PatchNCELoss(impl="gpu"), ValueError, "impl: got 'gpu'"),
]


@pytest.mark.parametrize("call, kind, text", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_arguments_are_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_repr_says_what_matters():
    assert "temperature=0.07, num_patches=256" in repr(kernels.PatchNCELoss())


def test_repeats_bit_for_bit():
    given = problem(3, 70, 24, 200, weights=True)
    first, second = (outcome(ours("cpu", normalize=True), given, torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert error(first["losses"], second["losses"]) == 0
