"""The operators in plain torch, as their papers' code has them: the oracle, and what runs where no kernel does."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from kernels._dtypes import no_autocast
from kernels._layout import dense, is_channels_last
from kernels.resample.spec import DOWN, PAD, Spec, margins

Tensor = torch.Tensor


def binomial(size: int) -> Tensor:
    """The filter of CUT's Downsample, (size, size), sum 1, float32, on the CPU: exact up to size 7."""
    row = torch.tensor([float(math.comb(size - 1, t)) for t in range(size)], device="cpu")
    return torch.outer(row, row) / 4.0 ** (size - 1)


def resample(x: Tensor, spec: Spec) -> Tensor:
    """The operator on x (N, C, H, W), not its gradient. 16-bit maps are computed in float32 and rounded once."""
    with no_autocast(x.device.type):
        return dense(_resample(x, spec), is_channels_last(x))


def _resample(x: Tensor, spec: Spec) -> Tensor:
    (top, bottom), (left, right) = margins(spec.kind, spec.rows), margins(spec.kind, spec.columns)
    if x.numel() == 0:  # torch mirrors, convolves and interpolates no maps without channels, but it pads them
        height, width = spec.output
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
    if spec.kind == PAD:
        return F.pad(x, (left, right, top, bottom), mode="reflect")
    wide = x if x.dtype == torch.float64 else x.float()
    if spec.kind == DOWN:
        wide = F.pad(wide, (left, right, top, bottom), mode="reflect")
        weight = binomial(spec.rows[0]).to(wide).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(wide, weight, stride=2, groups=x.shape[1]).to(x.dtype)
    return F.interpolate(wide, scale_factor=2, mode="bilinear", align_corners=False).to(x.dtype)
