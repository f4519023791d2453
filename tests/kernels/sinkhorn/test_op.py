"""kernels.sinkhorn: the reference, the C++ code at every instruction set, autograd, torch.compile, arguments."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.numerics import FLOOR, error
from support.sinkhorn_edges import HARD, hold

import kernels
from kernels.sinkhorn import launch_cpu, reference
from kernels.sinkhorn.spec import new_potentials

Tensor = torch.Tensor


def problem(b: int, s: int, m: int, eps: float, seed: int = 0) -> Tensor:
    """Cosines of random features over eps, with MoNCE's diagonal, float64."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (F.normalize(torch.randn(b, n, 16, dtype=torch.float64, generator=generator), dim=-1) for n in (s, m))
    x = torch.bmm(q, k.transpose(1, 2))
    if min(s, m) > 1:  # a plan must be left
        x.diagonal(dim1=1, dim2=2).fill_(-10)
    return x / eps


def run(x: Tensor, iterations: int, impl: str, dtype: torch.dtype, as_: torch.dtype | None = None) -> tuple:
    """(log plan, gradient) of x rounded to `dtype` and computed in `as_`."""
    x = x.detach().to(dtype).to(as_ or dtype).requires_grad_()
    g = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(dtype)
    y = kernels.sinkhorn(x, iterations, impl=impl)
    y.backward(g.to(y.dtype))
    return y.detach(), x.grad


def check(x: Tensor, iterations: int, impl: str, dtype: torch.dtype = torch.float32) -> None:
    """Our error against float64 is at most twice that of torch's log-sum-exp loop, plus a few roundings."""
    ours, torchs = run(x, iterations, impl, dtype), run(x, iterations, "reference", dtype)
    exact = run(x, iterations, "reference", dtype, torch.float64)
    for name, a, b, want in zip(("log plan", "gradient"), ours, torchs, exact):
        assert a.dtype == dtype and a.isfinite().all(), name
        # what cancels: in the gradient sums of s or m terms of size 1, in the plan the entries (one rounding of them)
        size = max(want.abs().max().item(), math.sqrt(sum(x.shape[1:])) if name == "gradient" else x.abs().max() / 4)
        limit = 2 * error(b, want) + FLOOR * torch.finfo(dtype).eps * size
        assert error(a, want) <= limit, (name, tuple(x.shape), iterations, error(a, want), error(b, want), limit)


# ---- the reference ---------------------------------------------------------------------------------------------------


def test_reference_is_the_multiplicative_iteration():
    for s, m in ((12, 12), (9, 20)):
        x = problem(2, s, m, 0.3)
        kernel, v = x.exp(), torch.ones(2, m, 1, dtype=x.dtype)
        for _ in range(20):
            u = m / s / torch.bmm(kernel, v)
            v = 1 / torch.bmm(kernel.transpose(1, 2), u)
        torch.testing.assert_close(kernels.sinkhorn(x, 20).exp(), u * kernel * v.transpose(1, 2))


@pytest.mark.parametrize("s, m", [(8, 8), (5, 11), (11, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_marginals(s, m, dtype):
    plan = kernels.sinkhorn(problem(2, s, m, 1.0).to(dtype), 200).exp()
    torch.testing.assert_close(plan.sum(1), torch.ones_like(plan[:, 0]))
    torch.testing.assert_close(plan.sum(2), torch.full_like(plan[..., 0], m / s))


def test_first_and_second_derivative_in_float64():
    x = problem(2, 4, 5, 0.5).clamp_min(-5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernels.sinkhorn(x, 3), x)
    assert torch.autograd.gradgradcheck(lambda x: kernels.sinkhorn(x, 3), x)


# ---- the C++ code ----------------------------------------------------------------------------------------------------

SIZES = [(1, 1, 1), (3, 7, 7), (2, 33, 33), (1, 33, 20), (1, 5, 70), (2, 64, 48), (1, 17, 1), (1, 1, 9)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cpu(isa, size, eps):
    for iterations in (1, 2, 50):
        check(problem(*size, eps), iterations, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cpu_in_16_bits(isa, dtype):
    for size in ((2, 33, 33), (1, 20, 37)):
        check(problem(*size, 0.1), 20, "cpu", dtype)


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01, 0.001])
def test_cpu_at_the_published_size(eps):
    """256 patches; eps = 0.001 drifts through several references."""
    check(problem(2, 256, 256, eps), 50, "cpu")


def test_cpu_with_more_iterations_than_are_gathered_at_once(isa):
    check(problem(1, 19, 19, 0.2), 150, "cpu")


def test_entries_of_a_thousand_and_minus_infinity(isa):
    generator = torch.Generator().manual_seed(1)
    check(1e3 * torch.randn(1, 31, 31, dtype=torch.float64, generator=generator), 10, "cpu")
    x = problem(1, 12, 12, 0.5)
    x.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    want, got = kernels.sinkhorn(x), kernels.sinkhorn(x.float())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.isinf(), want.isinf())


def test_nan_comes_through(isa):
    x = problem(1, 12, 12, 0.5).float()
    x[0, 2, 3] = math.nan
    x.requires_grad_()
    y = kernels.sinkhorn(x)
    assert y.isnan().all()
    y.sum().backward()
    assert x.grad.isnan().any()


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_hard_numbers(isa, impl, case):
    hold(impl, case, 30)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_no_problems(impl):
    x = problem(0, 5, 4, 1.0).float().requires_grad_()
    y = kernels.sinkhorn(x, 3, impl=impl)
    assert y.shape == x.shape and torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    assert kernels.sinkhorn(x.detach(), 3, impl=impl).shape == x.shape


def test_problems_do_not_meet():
    """Results are those of each problem alone, bit for bit, with any number of threads."""
    x = problem(5, 40, 40, 0.1).float()
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(run(x, 30, "cpu", torch.float32))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert torch.equal(kernels.sinkhorn(x[3], 30), found[0][0][3])


def test_without_gradient_the_same_plan():
    x = problem(1, 20, 20, 0.02).float()
    assert torch.equal(kernels.sinkhorn(x), kernels.sinkhorn(x.clone().requires_grad_()).detach())


def test_strided_input_and_gradient():
    x = problem(2, 12, 12, 0.5).float()
    want = run(x, 10, "cpu", torch.float32)
    other = x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    y = kernels.sinkhorn(other, 10)
    g = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).float()
    y.backward(g.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(y, want[0]) and torch.equal(other.grad, want[1])


# ---- autograd and torch.compile --------------------------------------------------------------------------------------


def test_second_derivative_of_the_fused_path():
    def penalty(dtype):
        x = problem(2, 9, 9, 0.5).to(dtype).requires_grad_()
        y = kernels.sinkhorn(x, 10)
        (first,) = torch.autograd.grad((y * y.detach().cos()).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    want = penalty(torch.float64)
    torch.testing.assert_close(penalty(torch.float32).double(), want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("impl, backend", [("auto", "inductor"), ("reference", "aot_eager")])
def test_compiles_in_one_graph(impl, backend):
    torch._dynamo.reset()
    x = problem(2, 16, 16, 0.5).float()

    def op(x):
        return kernels.sinkhorn(x * 1.0, 5, impl=impl) * 2.0

    results = []
    for f in (op, torch.compile(op, fullgraph=True, backend=backend)):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        results.append((y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]))
    torch.testing.assert_close(*results)


def test_opcheck():
    x = problem(2, 6, 9, 0.5).float()
    ops = torch.ops.fused_i2i
    torch.library.opcheck(ops.sinkhorn_forward.default, (x, 3, "cpu"))
    y, potentials = ops.sinkhorn_forward(x, 3, "cpu")
    assert potentials.shape == new_potentials(x, 3).shape
    torch.library.opcheck(ops.sinkhorn_backward.default, (torch.ones_like(y), x, potentials, "cpu"))


def test_launcher_is_the_reference():
    x = problem(1, 10, 10, 1.0).float()
    plan, potentials = launch_cpu.forward(x, 4, keep=False)
    assert potentials is None
    torch.testing.assert_close(plan, reference.sinkhorn(x, 4))


# ---- arguments -------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 4, 4)
BAD = [
    (lambda: kernels.sinkhorn([X]), TypeError, "log_kernel: got list"),
    (lambda: kernels.sinkhorn(X.int()), TypeError, "log_kernel: got torch.int32"),
    (lambda: kernels.sinkhorn(X.to_sparse()), TypeError, "log_kernel: got layout"),
    (lambda: kernels.sinkhorn(X[0, 0]), ValueError, r"log_kernel: got shape \(4,\), want \(B, S, M\)"),
    (lambda: kernels.sinkhorn(X[None]), ValueError, r"log_kernel: got shape \(1, 2, 4, 4\)"),
    (lambda: kernels.sinkhorn(X[:, :0]), ValueError, "at least one element"),
    (lambda: kernels.sinkhorn(X, 0), ValueError, "iterations: got 0, want an int >= 1"),
    (lambda: kernels.sinkhorn(X, 5.0), TypeError, "iterations: got float"),
    (lambda: kernels.sinkhorn(X, True), TypeError, "iterations: got bool"),
    (lambda: kernels.sinkhorn(X, impl="fast"), ValueError, "impl: got 'fast'"),
    (lambda: kernels.sinkhorn(X.double(), impl="cpu"), kernels.BackendUnavailable, "not torch.float64"),
]


@pytest.mark.parametrize("call, kind, text", BAD, ids=[text for _, _, text in BAD])
def test_bad_input_is_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
