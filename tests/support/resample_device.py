"""Resampling on GPUs against the published form. What torch computes is computed on the CPU: a GPU's convolutions of
float32 may be TF32's."""

from __future__ import annotations

import torch
from support.device_numerics import DEVICE
from support.numerics import check_rule
from support.patches_cases import in_layout
from support.resample_cases import PADS

from kernels._layout import is_channels_last


def both(f, x, grad) -> dict[str, torch.Tensor]:
    x = x.detach().requires_grad_()
    y = f(x)
    return {"y": y.detach(), "dx": torch.autograd.grad(y, x, grad)[0]}


def fused(impl, case, x, grad) -> dict[str, torch.Tensor]:
    """On x as it stands in memory."""
    return both(lambda x: case.ours(x, impl), x, grad)


def on_host(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.cpu() for name, t in found.items()}


def check(impl, case, x, layout):
    """x: on the host."""
    exact_y = case.published(x.double())
    grad = torch.randn(exact_y.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    given = in_layout(x.to(DEVICE), layout)
    ours = fused(impl, case, given, grad.to(DEVICE))
    assert all(is_channels_last(t) == is_channels_last(given) for t in ours.values() if t[0, 0].numel() > 1), layout
    ours, exact = on_host(ours), both(case.published, x.double(), grad.double())
    check_rule(ours, both(case.published, x, grad), exact, x.dtype, (case.name, tuple(x.shape), layout))
    if case in PADS:
        assert torch.equal(ours["y"].double(), exact["y"])
