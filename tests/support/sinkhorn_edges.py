"""Log kernels with infinite, undefined, equal and far-apart entries, and what kernels.sinkhorn must make of them.
Shared by test_op.py and test_triton.py of the sinkhorn room."""

from __future__ import annotations

import math

import torch

import kernels

INF, NAN = math.inf, math.nan
HARD = {
    "constant": lambda x: x.fill_(7.0),
    "constant row": lambda x: x[0, 2].fill_(7.0),
    "one of -inf": lambda x: x[0, 2, 3].fill_(-INF),
    "column of -inf but one": lambda x: x[0, 1:, 3].fill_(-INF),
    "row of -inf": lambda x: x[0, 2].fill_(-INF),
    "column of -inf": lambda x: x[0, :, 3].fill_(-INF),
    "all -inf": lambda x: x[0].fill_(-INF),
    "only a diagonal": lambda x: x.masked_fill_(~torch.eye(*x.shape[1:], dtype=torch.bool, device=x.device), -INF),
    "+inf": lambda x: x[0, 2, 3].fill_(INF),
    "row of +inf": lambda x: x[0, 2].fill_(INF),
    "undefined": lambda x: x[0, 2, 3].fill_(NAN),
    "no plan": lambda x: x[0, :4, 3:].fill_(-INF),  # four rows for three columns: the iteration does not converge
    "masked by -1e9": lambda x: x[0, 1:4, 2:5].fill_(-1e9),
    "masked by -1e30": lambda x: x[0, 1:4, 2:5].fill_(-1e30),
}


def loop(x: torch.Tensor, iterations: int) -> torch.Tensor:
    """The iteration as the docstring of kernels.sinkhorn has it."""
    b = torch.zeros_like(x[:, :1])
    for _ in range(iterations):
        a = math.log(x.shape[2] / x.shape[1]) - torch.logsumexp(x + b, 2, keepdim=True)
        b = -torch.logsumexp(x + a, 1, keepdim=True)
    return x + a + b


def hold(impl: str, case: str, iterations: int, device: str = "cpu") -> None:
    """NaN where the loop in float64 has it, and its numbers elsewhere, in the log plan and in the gradient."""
    for s, m in ((6, 6), (9, 7)):
        generator = torch.Generator().manual_seed(s)
        x = 2 * torch.randn(2, s, m, dtype=torch.float64, generator=generator)
        HARD[case](x)
        g = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        found = []
        for f, dtype in ((loop, torch.float64), (lambda x, n: kernels.sinkhorn(x, n, impl=impl), torch.float32)):
            own = x.float().to(device, dtype).requires_grad_()
            plan = f(own, iterations)
            (gradient,) = torch.autograd.grad(plan, own, g.to(device, dtype))
            found.append((plan.detach().double().cpu(), gradient.double().cpu()))
        (plan, gradient), (got, got_gradient) = found
        torch.testing.assert_close(got, plan, rtol=1e-5, atol=1e-4, equal_nan=True)
        size = gradient.nan_to_num().abs().max().item()
        torch.testing.assert_close(got_gradient, gradient, rtol=1e-4, atol=1e-4 * max(size, 1.0), equal_nan=True)
