"""2-D convolutions that are differentiated twice and more by the operators of the first derivative; as products of
matrices where a large weight meets few places.

torch's own second derivative takes that of a weight as a convolution with a kernel as large as the map, and gives zeros
back where it is zero. And oneDNN brings a weight into its own order at each call, and its gradient back, which for 34
million numbers used at four places of an image is most of the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

LEAST = 1 << 20  # elements of a weight, below which there is little to gain
_aten: Any = torch.ops.aten


class Options(NamedTuple):
    """Of a convolution, in the order of torch's operators."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    @classmethod
    def of(cls, stride: Any, padding: Any, dilation: Any, groups: int) -> Options:
        pairs = ((given, given) if isinstance(given, int) else given for given in (stride, padding, dilation))
        return cls(*pairs, transposed=False, output_padding=(0, 0), groups=groups)

    def size(self, x: Tensor, weight: Tensor) -> tuple[int, int]:
        """Rows and columns of the result."""
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(
                x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width


class Inside:
    """Whoever computes a gradient with respect to images alone says so here: torch tells its own operators that nobody
    asks for those of the weights, but no Function."""

    without_weights = False


class Conv2d(nn.Conv2d):
    """torch's, by `conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv2d on (N, C, H, W), as products of matrices where they are faster."""
    if has_torch_function_unary(x):  # of a mode that puts another function in its place
        return handle_torch_function(conv2d, (x,), x, weight, bias, stride, padding, dilation, groups)
    if not isinstance(padding, str):
        options = Options.of(stride, padding, dilation, groups)
        if by_products(x, weight, options):
            if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
                dtype = torch.get_autocast_dtype(x.device.type)
                x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            return differentiable(x, weight, bias, options, None)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def differentiable(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options, inside: Inside | None) -> Tensor:
    """The convolution of tensors of one dtype, with derivatives as the head of this file has them."""
    return _Convolution.apply(x, weight, bias, options, inside)


# ---- derivatives -----------------------------------------------------------------------------------------------------


class _Convolution(torch.autograd.Function):
    """y(x, weight) + bias. Its derivatives and theirs are this and the next two: all are linear in each argument."""

    @staticmethod
    def forward(ctx, x, weight, bias, options, inside):
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.inside = options, inside
        ctx.set_materialize_grads(False)
        return convolved(x, weight, bias, options)

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
    """dx(grad, weight); of x the shape and the order in memory count."""

    @staticmethod
    def forward(ctx, grad, weight, x, options):
        ctx.save_for_backward(grad, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return input_gradient(grad, weight, x, options)

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
    """dweight(grad, x); of the weight the shape and the order in memory count."""

    @staticmethod
    def forward(ctx, grad, x, weight, options):
        ctx.save_for_backward(grad, x)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return weight_gradient(grad, x, weight, options)

    @staticmethod
    def backward(ctx, of_dweight):
        if of_dweight is None:
            return (None,) * 4
        grad, x = ctx.saved_tensors
        need_grad, need_x, *_ = ctx.needs_input_grad
        of_grad = _Convolution.apply(x, of_dweight, None, ctx.options, None) if need_grad else None
        of_x = _InputGradient.apply(grad, of_dweight, x.detach(), ctx.options) if need_x else None
        return of_grad, of_x, None, None


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    if not by_products(x, weight, options):
        return _aten.convolution(x, weight, bias, *options)
    height, width = options.size(x, weight)
    form = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
    rows = patches(x, weight, options)
    y = x.new_empty(len(x), height, width, len(weight))
    if bias is None:
        torch.mm(rows, matrix(weight).t(), out=y.view(-1, len(weight)))
    else:
        torch.addmm(bias, rows, matrix(weight).t(), out=y.view(-1, len(weight)))
    # A copy, of a small map, and not another name for it: what comes next may work in place.
    return torch.empty(y.permute(0, 3, 1, 2).shape, dtype=y.dtype, memory_format=form).copy_(y.permute(0, 3, 1, 2))


def input_gradient(grad: Tensor, weight: Tensor, x: Tensor, options: Options) -> Tensor:
    if not by_products(x, weight, options):
        return _aten.convolution_backward(grad, x, weight, None, *options, [True, False, False])[0]
    taps = split(torch.mm(rows_of(grad), matrix(weight)).view(*grad.shape[:1], *grad.shape[2:], -1), weight)
    top, left = options.padding
    image = x.new_zeros(len(x), x.shape[2] + 2 * top, x.shape[3] + 2 * left, x.shape[1])
    for tap, part in zip(taps, places(image, weight, grad.shape[2:], options), strict=True):
        part += tap
    inner = image[:, top : top + x.shape[2], left : left + x.shape[3]]
    return torch.empty_like(x).copy_(inner.permute(0, 3, 1, 2))


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, options: Options) -> Tensor:
    if not by_products(x, weight, options):
        return _aten.convolution_backward(grad, x, weight, None, *options, [False, True, False])[1]
    dweight = torch.empty_like(weight)
    torch.mm(rows_of(grad).t(), patches(x, dweight, options), out=matrix(dweight))
    return dweight


# ---- products of matrices --------------------------------------------------------------------------------------------


def by_products(x: Tensor, weight: Tensor, options: Options) -> bool:
    """Whether the patches of x take less memory than the weight, which is large, on a CPU.

    Milliseconds of one thread (AVX2, float32; forward, gradients of x and of the weight), convolution in channels last
    and product: StarGAN's last layer, 1024 to 2048 channels, 8 maps of 4 x 4: 1042, 1336, 3161 and 229, 304, 625; the
    one before, 8 maps of 8 x 8: 231, 290, 656 and 147, 197, 234. Where both take as much, 256 to 512 channels, 8 maps
    of 16 x 16: 71, 97, 168 and 83, 111, 80.
    """
    if options.groups != 1 or x.device.type != "cpu" or weight.numel() < LEAST:
        return False
    height, width = options.size(x, weight)
    return 0 < len(x) * height * width < len(weight)


def matrix(weight: Tensor) -> Tensor:
    """(outputs, numbers of a patch), in the order of memory: no copy."""
    return weight.flatten(1) if weight.is_contiguous() else weight.permute(0, 2, 3, 1).flatten(1)


def rows_of(grad: Tensor) -> Tensor:
    """(places, outputs)."""
    return grad.permute(0, 2, 3, 1).flatten(0, 2)


def places(image: Tensor, weight: Tensor, size: Sequence[int], options: Options) -> Iterator[Tensor]:
    """For each number of a kernel what it meets of a padded image (N, H, W, C): (N, height, width, C)."""
    ends = [stride * (length - 1) + 1 for stride, length in zip(options.stride, size, strict=True)]
    for i in range(0, weight.shape[2] * options.dilation[0], options.dilation[0]):
        for j in range(0, weight.shape[3] * options.dilation[1], options.dilation[1]):
            yield image[:, i : i + ends[0] : options.stride[0], j : j + ends[1] : options.stride[1]]


def patches(x: Tensor, weight: Tensor, options: Options) -> Tensor:
    """(places, numbers of a patch), as `matrix(weight)` has them."""
    top, left = options.padding
    image = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))
    taps = list(places(image, weight, options.size(x, weight), options))
    return torch.stack(taps, 4 if weight.is_contiguous() else 3).flatten(3).flatten(0, 2)


def split(patches: Tensor, weight: Tensor) -> Sequence[Tensor]:
    """What `patches` stacks, of (N, height, width, numbers of a patch): (N, height, width, C) each."""
    if weight.is_contiguous():
        return patches.unflatten(3, (weight.shape[1], -1)).unbind(4)
    return patches.unflatten(3, (-1, weight.shape[1])).unbind(3)
