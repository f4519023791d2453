"""Convolutions and leaky ReLUs whose derivative is differentiated once more: for penalties on a network's gradient.

torch's own do that at a price. Where a second derivative is zero they send zeros back through the network, and every
layer below takes its gradients of them: a third of the convolutions of a penalty. And they take the gradient of a
weight as a convolution whose kernel is a whole map, where the operator of the first derivative computes the same sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_aten: Any = torch.ops.aten


class Differentiated(TorchFunctionMode):
    """Inside, torch's 2-D convolutions and leaky ReLUs are those below, whoever calls them. The same values, first
    derivatives and second ones, which may be differentiated again."""

    def __init__(self) -> None:
        super().__init__()
        self.without_weights = False
        self.replaced = {torch.conv2d: self._conv2d, F.leaky_relu: _leaky_relu, F.leaky_relu_: _leaky_relu_}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_grad_enabled():
            func = self.replaced.get(func, func)
        return func(*args, **(kwargs or {}))

    def gradient(self, y: Tensor, x: Tensor) -> Tensor:
        """That of a scalar y with respect to x, with a graph. y was computed inside."""
        self.without_weights = True  # torch tells its own operators that nobody asks for these, but no Function
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
        options = _Options(_pair(stride), _pair(padding), _pair(dilation), False, (0, 0), groups)
        return _Convolution.apply(x, weight, bias, options, self)


# ---- convolutions ----------------------------------------------------------------------------------------------------


class _Options(NamedTuple):
    """Of a convolution, in the order of torch's operators."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


def _pair(given: int | Sequence[int]) -> Sequence[int]:
    return (given, given) if isinstance(given, int) else given


class _Convolution(torch.autograd.Function):
    """y(x, weight) + bias. Its derivatives and theirs are this and the next two: all are linear in each argument."""

    @staticmethod
    def forward(ctx, x, weight, bias, options, inside):
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.inside = options, inside
        ctx.set_materialize_grads(False)
        return _aten.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * 5
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
        dx = _InputGradient.apply(grad, weight, x.detach(), ctx.options) if need_x else None
        if ctx.inside is not None and ctx.inside.without_weights:
            return dx, None, None, None, None
        dweight = _WeightGradient.apply(grad, x, weight.detach(), ctx.options) if need_weight else None
        return dx, dweight, grad.sum((0, 2, 3)) if need_bias else None, None, None


class _InputGradient(torch.autograd.Function):
    """dx(grad, weight); of x the shape counts."""

    @staticmethod
    def forward(ctx, grad, weight, x, options):
        ctx.save_for_backward(grad, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _aten.convolution_backward(grad, x, weight, None, *options, [True, False, False])[0]

    @staticmethod
    def backward(ctx, of_dx):
        if of_dx is None:
            return (None,) * 4
        grad, weight = ctx.saved_tensors
        need_grad, need_weight, *_ = ctx.needs_input_grad
        of_grad = _Convolution.apply(of_dx, weight, None, ctx.options, None) if need_grad else None
        of_weight = _WeightGradient.apply(grad, of_dx, weight.detach(), ctx.options) if need_weight else None
        return of_grad, of_weight, None, None


class _WeightGradient(torch.autograd.Function):
    """dweight(grad, x); of the weight the shape counts."""

    @staticmethod
    def forward(ctx, grad, x, weight, options):
        ctx.save_for_backward(grad, x)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _aten.convolution_backward(grad, x, weight, None, *options, [False, True, False])[1]

    @staticmethod
    def backward(ctx, of_dweight):
        if of_dweight is None:
            return (None,) * 4
        grad, x = ctx.saved_tensors
        need_grad, need_x, *_ = ctx.needs_input_grad
        of_grad = _Convolution.apply(x, of_dweight, None, ctx.options, None) if need_grad else None
        of_x = _InputGradient.apply(grad, of_dweight, x.detach(), ctx.options) if need_x else None
        return of_grad, of_x, None, None


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
