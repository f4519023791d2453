"""Convolutions and leaky ReLUs whose derivative is differentiated once more: for penalties on a network's gradient.

torch's own do that at a price. Where a second derivative is zero they send zeros back through the network, and every
layer below takes its gradients of them: a third of the convolutions of a penalty.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from i2i.networks import convolution
from i2i.networks.convolution import Inside, Options

_aten: Any = torch.ops.aten


class Differentiated(TorchFunctionMode, Inside):
    """Inside, 2-D convolutions are those of `convolution`, and leaky ReLUs those below, whoever calls torch's own. The
    same values, first derivatives and second ones, which may be differentiated again."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced = {
            **{torch.conv2d: self._conv2d, convolution.conv2d: self._conv2d},
            **{F.leaky_relu: _leaky_relu, F.leaky_relu_: _leaky_relu_},
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled():
            func = self.replaced.get(func, func)
        return func(*args, **(kwargs or {}))

    def gradient(self, y: Tensor, x: Tensor) -> Tensor:
        """That of a scalar y with respect to x, with a graph. y was computed inside."""
        self.without_weights = True
        try:
            return torch.autograd.grad(y, x, create_graph=True)[0]
        finally:
            self.without_weights = False

    def _conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if x.dim() != 4 or isinstance(padding, str):
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        options = Options.of(stride, padding, dilation, groups)
        return convolution.differentiable(x, weight, bias, options, self)


# ---- leaky ReLUs -----------------------------------------------------------------------------------------------------


def _leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    if negative_slope < 0:  # whose result does not tell where x was positive
        return F.leaky_relu(x, negative_slope, inplace)
    return _LeakyReLU.apply(x, negative_slope, inplace)


def _leaky_relu_(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _leaky_relu(x, negative_slope, True)


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, slope, in_place):
        if in_place:
            ctx.mark_dirty(x)
        y = F.leaky_relu(x, slope, in_place)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return _Sloped.apply(grad, y.detach(), ctx.slope), None, None


class _Sloped(torch.autograd.Function):
    """grad where y is positive, else slope * grad; y does not change where it is differentiated."""

    @staticmethod
    def forward(ctx, grad, y, slope):
        ctx.save_for_backward(y)
        ctx.slope = slope
        return _aten.leaky_relu_backward(grad, y, slope, True)

    @staticmethod
    def backward(ctx, of_result):
        (y,) = ctx.saved_tensors
        return _Sloped.apply(of_result, y, ctx.slope), None, None
