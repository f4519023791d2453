"""Inputs of the patches tests, and what must come out: every map's patches and gradient in float64 by plain torch."""

from __future__ import annotations

import torch

from kernels.patches import reference

Tensor = torch.Tensor

LAYOUTS = ("contiguous", "channels_last", "inside", "inside channels_last", "transposed")

# sizes of maps (B, C, *spatial), and how many patches
SIZES = [
    ((2, 3, 9, 7), 20),  # fewer channels than a vector
    ((1, 70, 8, 8), 64),  # whole vectors, whole tasks, and a rest
    ((3, 64, 16, 16), 7),
    ((2, 1, 5, 6), 30),
    ((1, 4, 1, 1), 3),
    ((2, 33, 31, 17), 300),  # more patches than one task gathers
]

# where CUT taps its generator at 256 x 256
CUT = [(1, 3, 262, 262), (1, 128, 256, 256), (1, 256, 128, 128), (1, 256, 64, 64), (1, 256, 64, 64)]


def randn(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu") -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The values of x (B, C, H, W) so placed in memory."""
    if layout.startswith("inside"):
        b, c, h, w = x.shape
        around = torch.full((b, c, h + 4, w + 4), float("nan"), dtype=x.dtype, device=x.device)
        if "channels_last" in layout:
            around = around.contiguous(memory_format=torch.channels_last)
        inside = around[..., 2:-2, 2:-2]
        inside.copy_(x)
        return inside
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x.contiguous()


def some_ids(x: Tensor, count: int, seed: int = 0) -> Tensor:
    """Positions of x, some of them several times."""
    last = x[0, 0].numel()
    return torch.randint(0, last, (count,), generator=torch.Generator().manual_seed(seed)).to(x.device)


def exact(x: Tensor, ids: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Patches, and the gradient of x from that of the patches, in float64."""
    wide = x.detach().double().requires_grad_()
    rows = reference.sample(wide, ids)
    return rows.detach(), torch.autograd.grad(rows, wide, grad.double())[0]


def check_gradient(got: Tensor, want: Tensor, like: Tensor, roundings: float = 0.5) -> None:
    """Sums are in float32: within one rounding of the dtype, half an eps, and a few of float32's beside."""
    assert got.dtype == like.dtype and got.shape == like.shape
    size = max(want.abs().max().item(), 1.0)
    error = (got.double() - want).abs()
    limit = want.abs() * torch.finfo(like.dtype).eps * roundings * 1.01 + 8 * 2**-24 * size
    assert (error <= limit).all(), error.max()
