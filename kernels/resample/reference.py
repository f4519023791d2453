"""The operators in plain torch, as their papers' code has them: the oracle, and what runs where no kernel does."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels._dtypes import no_autocast, wide
from kernels._layout import dense, is_channels_last
from kernels.resample.spec import DOWN, PAD, Spec, binomial

Tensor = torch.Tensor


def _transposed(grad: Tensor, spec: Spec) -> Tensor:
    """The gradient of the operator, which is linear: of any x."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        size = (*grad.shape[:2], spec.height, spec.width)
        x = torch.zeros(size, dtype=grad.dtype, device=grad.device, requires_grad=True)
        (found,) = torch.autograd.grad(resample(x, spec._replace(transposed=False)), x, grad, create_graph=create_graph)
    return found


def resample(x: Tensor, spec: Spec) -> Tensor:
    """The operator or its gradient on x (N, C, H, W). 16-bit maps are computed in float32 and rounded once."""
    with no_autocast(x.device.type):
        if spec.transposed:
            return _transposed(x, spec)
        return dense(_resample(x, spec), is_channels_last(x))


def _resample(x: Tensor, spec: Spec) -> Tensor:
    if x.numel() == 0:  # torch mirrors, convolves and interpolates no maps without channels, but it pads them
        height, width = spec.output
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
    if spec.kind == PAD:
        return F.pad(x, (*spec.columns, *spec.rows), mode="reflect")
    given = wide(x)
    if spec.kind == DOWN:
        size = spec.rows[0]  # of both axes
        before, behind = (size - 1) // 2, size // 2  # not taps.margins: an error there must show here
        given = F.pad(given, (before, behind, before, behind), mode="reflect")
        tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] (documented)
        channels = int(x.shape[1]) if tracing else x.shape[1]  # ONNX: a filter of one shape
        weight = binomial(size).to(given).expand(channels, 1, -1, -1)
        return F.conv2d(given, weight, stride=2, groups=channels).to(x.dtype)
    return F.interpolate(given, scale_factor=2, mode="bilinear", align_corners=False).to(x.dtype)
