"""What the Sinkhorn kernels for GPUs must compute: Triton's in its interpreter (TRITON_INTERPRET=1), CUDA's in the
emulation, or both on a GPU.

Rule for numbers as in support/device_numerics.py."""

from __future__ import annotations

import math

import pytest
import torch
from support.device_numerics import DEVICE
from support.sinkhorn_edges import HARD, hold

import kernels
from kernels import backends

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


def problem(b: int, s: int, m: int, eps: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(b, s, m, dtype=torch.float64, generator=generator) * 2 - 1
    if min(s, m) > 1:
        x.diagonal(dim1=1, dim2=2).fill_(-10)
    return (x / eps).to(DEVICE)


def run(x, iterations, impl, dtype, as_=None):
    x = x.detach().to(dtype).to(as_ or dtype).requires_grad_()
    g = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(DEVICE, dtype)
    y = kernels.sinkhorn(x, iterations, impl=impl)
    y.backward(g.to(y.dtype))
    return y.detach(), x.grad


def check(impl, x, iterations, dtype=torch.float32):
    ours, torchs = run(x, iterations, impl, dtype), run(x, iterations, "reference", dtype)
    exact = run(x, iterations, "reference", dtype, torch.float64)
    for name, a, b, want in zip(("log plan", "gradient"), ours, torchs, exact):
        assert a.dtype == dtype and a.isfinite().all(), name
        # what cancels: in the gradient sums of s or m terms of size 1, in the plan the entries (one rounding of them)
        size = max(want.abs().max().item(), math.sqrt(sum(x.shape[1:])) if name == "gradient" else x.abs().max() / 4)
        limit = 2 * (b.double() - want).abs().max().item() + 4 * torch.finfo(dtype).eps * size
        assert (a.double() - want).abs().max().item() <= limit, (name, limit)


SIZES = [(1, 1, 1), (3, 7, 7), (2, 33, 33), (1, 33, 20), (1, 5, 70), (1, 17, 1), (1, 1, 9)]


@pytest.mark.parametrize("eps", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whole_in_a_block(size, eps, impl):
    for iterations in (1, 4):
        check(impl, problem(*size, eps), iterations)


@pytest.fixture(params=["parts", "memory"])
def cut(request, impl, launcher, monkeypatch):
    """Small problems cut as large ones are: into tiles; of CUDA's into the blocks of a cluster, or left in memory."""
    if impl == "triton":
        if request.param == "memory":
            pytest.skip("triton's kernels leave every problem in memory")
        monkeypatch.setattr(launcher, "ROWS", 8)
        monkeypatch.setattr(launcher, "COLUMNS", 16)
        monkeypatch.setattr(launcher, "TILE", (4, 8))
        yield
        return
    monkeypatch.setattr(launcher, "LEAST_ROWS", 2)
    monkeypatch.setattr(launcher, "HELD", request.param == "parts")
    launcher._plans.clear()
    yield
    launcher._plans.clear()


@pytest.mark.parametrize("eps", [1.0, 0.01])
@pytest.mark.parametrize("size", SIZES[1:6], ids=str)
def test_in_parts(size, eps, cut, impl):
    check(impl, problem(*size, eps), 3)


@pytest.mark.parametrize("case", HARD)
def test_hard_numbers_in_parts(case, cut, impl):
    hold(impl, case, 3, DEVICE)


def test_what_is_launched(cut, launched, impl):
    x = problem(2, 33, 20, 0.1).float().requires_grad_()
    kernels.sinkhorn(x, 3, impl=impl).sum().backward()
    name = "sweep_potentials" if impl == "triton" else "sweep"
    assert [launch.name for launch in launched] == ["iterate", name, "gradient"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits(dtype, impl):
    check(impl, problem(2, 20, 24, 0.1), 4, dtype)


def test_published_size(impl):
    check(impl, problem(1, 256, 256, 0.1), 50 if torch.cuda.is_available() and not backends.interpreting() else 3)


def test_minus_infinity(impl):
    x = problem(1, 12, 12, 0.5)
    x.diagonal(dim1=1, dim2=2).fill_(-math.inf)
    x[0, :8, 0] = -math.inf  # a whole tile of nothing
    want, got = kernels.sinkhorn(x, 5), kernels.sinkhorn(x.float(), 5, impl=impl)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_repeats_bit_for_bit(cut, impl):
    x = problem(2, 33, 20, 0.1)
    first, again = (run(x, 3, impl, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_without_gradients(cut, impl):
    x = problem(2, 33, 20, 0.1).float()
    with torch.no_grad():
        alone = kernels.sinkhorn(x, 3, impl=impl)
    assert torch.equal(alone, run(x, 3, impl, torch.float32)[0])


@pytest.mark.parametrize("case", HARD)
def test_hard_numbers(case, impl):
    hold(impl, case, 3, DEVICE)


def test_no_problems(launched, impl):
    x = problem(0, 5, 4, 1.0).float().requires_grad_()
    y = kernels.sinkhorn(x, 3, impl=impl)
    assert y.shape == x.shape and torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    assert not launched


def test_second_derivative(impl):
    def penalty(dtype, impl):
        x = problem(1, 6, 6, 0.5).to(dtype).requires_grad_()
        y = kernels.sinkhorn(x, 3, impl=impl)
        (first,) = torch.autograd.grad((y * y.detach().cos()).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    want = penalty(torch.float64, "reference")
    got = penalty(torch.float32, impl).double()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())
