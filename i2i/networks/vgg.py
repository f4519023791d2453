"""VGG-16 (Simonyan and Zisserman 2015, arXiv 1409.1556) as far as relu5_3, and MUNIT's perceptual loss on it.

The weights are the user's to give: MUNIT used the Caffe model of the paper's authors. torchvision's weights for the
same layers are others (trained anew, for another range and order of colours) and give another loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from i2i.errors import UsageError
from i2i.files import read_tensors
from kernels._dtypes import wide

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MEANS = (103.939, 116.779, 123.680)  # of blue, green and red in the data the Caffe model was trained on, in 0 .. 255


class Vgg16(nn.Module):
    """Images (N, 3, H, W), RGB in [-1, 1] -> relu5_3, (N, 512, ceil(H / 8), ceil(W / 8)).

    Pools after conv1_2, conv2_2 and conv3_3 but, as MUNIT does, not after conv4_3. Keys `conv1_1.weight`, ...
    """

    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        inner = 3
        for stage, widths in enumerate(WIDTHS, 1):
            for place, outer in enumerate(widths, 1):
                self.add_module(f"conv{stage}_{place}", nn.Conv2d(inner, outer, 3, padding=1))
                inner = outer
        self.register_buffer("means", torch.tensor(MEANS).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.flip(1) + 1) * 127.5 - self.means
        for stage, widths in enumerate(WIDTHS, 1):
            for place in range(1, len(widths) + 1):
                x = F.relu(self.get_submodule(f"conv{stage}_{place}")(x), inplace=True)
            if stage <= 3:
                x = F.max_pool2d(x, 2)
        return x


def load_vgg16(path: str) -> Vgg16:
    """The network with the Caffe weights in `path`, frozen: a state dict with keys `conv1_1.weight`, ... or, layers in
    the same order, `features.0.weight`, ... ; whatever else is in it is ignored.

    Raises UsageError where there is no such file or it holds something else.
    """
    if not Path(path).is_file():
        raise UsageError(f"vgg_weights: {path} is not a file")
    try:
        state = read_tensors(Path(path))
    except UsageError as error:
        raise UsageError(f"vgg_weights: {error}") from None
    net = Vgg16()
    try:
        net.load_state_dict(by_published_names(state, net))
    except (RuntimeError, TypeError, ValueError):
        raise UsageError(
            f"vgg_weights: {path} does not hold the 13 convolutions of VGG-16 as conv1_1.weight, conv1_1.bias, ... "
            "or features.0.weight, features.0.bias, ..."
        ) from None
    if not all(weight.isfinite().all() for weight in net.parameters()):
        raise UsageError(f"vgg_weights: {path} holds weights that are not finite: damaged, or of a run that diverged")
    return net.requires_grad_(False).eval()


def by_published_names(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    given = [key for key in state if re.match(r"conv\d_\d\.|features\.\d+\.", key)]
    if any(key.startswith("features.") for key in given):
        given.sort(key=lambda key: (int(key.split(".")[1]), key.endswith("bias")))  # weight, then bias of every layer
        return dict(zip(net.state_dict(), (state[key] for key in given), strict=True))
    return {key: state[key] for key in given}


def normalised_distance(x: Tensor, y: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean over everything of (IN(x) - IN(y))^2, IN the instance norm without parameters: MUNIT's comparison of the
    features of a translation with those of its source, whatever their domains do to mean and spread.

    x, y: (N, C, H, W); the gradient is x's alone. Neither normalised map is kept: a plane's distance is var(x) r_x^2 +
    var(y) r_y^2 - 2 cov(x, y) r_x r_y with r = (var + eps)^-1/2, and its gradient a sum of multiples of the centred x
    and y.

    Returns: a scalar, float32 (float64 for float64).
    """
    with torch.autocast(x.device.type, enabled=False):
        return _NormalisedDistance.apply(x, y.detach(), eps)


class _NormalisedDistance(torch.autograd.Function):
    # Both ways maps are centred before anything else: where a plane's spread is small beside its mean, raw sums of
    # squares and of multiples cancel, and a plane of 200s got a gradient a quarter off.

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, eps: float) -> Tensor:
        (mean_x, d_x), (mean_y, d_y) = centred(x), centred(y)
        var_x, var_y, cov = (product.mean((2, 3), keepdim=True) for product in (d_x * d_x, d_y * d_y, d_x * d_y))
        r_x, r_y = (var_x + eps).rsqrt(), (var_y + eps).rsqrt()
        squares, products = var_x * r_x * r_x, cov * r_x * r_y
        ctx.save_for_backward(x, y, mean_x, mean_y, (1 - squares + products) * r_x * r_x, r_x * r_y)
        return (squares + var_y * r_y * r_y - 2 * products).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        x, y, mean_x, mean_y, of_x, of_y = ctx.saved_tensors
        unit = 2 * grad / x.numel()
        return (unit * (of_x * (x - mean_x) - of_y * (y - mean_y))).to(x.dtype), None, None


def centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, x - mean) of planes, in float32 or float64."""
    x = wide(x)
    mean = x.mean((2, 3), keepdim=True)
    return mean, x - mean
