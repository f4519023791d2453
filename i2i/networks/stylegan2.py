"""StyleGAN2's generator and discriminator in the form SinCUT uses them (Karras et al. 2020, arXiv 1912.04958; Park et
al. 2020, arXiv 2007.15651, single-image translation): no style, no normalisation of maps.

Weights start as N(0, 1) and are scaled at run time (equalised learning rate); `init_weights` leaves them alone. Indices
and keys are those of the published checkpoints. Their places for an activation hold its bias; what the activation
multiplies by is folded into weights, so that maps are not read again for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i.errors import UsageError
from i2i.networks.keys import Recognised, Settings, State, indices
from i2i.networks.taps import TappedGenerator

GAIN = 2**0.5  # behind every leaky ReLU, which is one of slope 0.2


class _Depthwise(torch.autograd.Function):
    """The same filter on every channel, or that map's transposed; the derivative of each is the other.

    torch's derivative of a depthwise convolution's derivative runs channel by channel, for a gradient that a fixed
    filter does not want: a fifth of the time of SinCUT's discriminator with its gradient penalty.
    """

    @staticmethod
    def forward(ctx, x, kernel, stride, padding, transposed):
        ctx.given = kernel, stride, padding, transposed
        channels = x.shape[1]
        convolve = F.conv_transpose2d if transposed else F.conv2d
        filters = kernel.to(x.dtype).expand(channels, 1, -1, -1)
        return convolve(x, filters, stride=stride, padding=padding, groups=channels)

    @staticmethod
    def backward(ctx, grad):
        kernel, stride, padding, transposed = ctx.given
        return _Depthwise.apply(grad, kernel, stride, padding, not transposed), None, None, None, None


class Blur(nn.Module):
    """[1, 3, 3, 1] x [1, 3, 3, 1] / 64 times `gain`, zeros around; shape by `padding` and `stride` as a convolution's.

    kernels.blur_downsample has this filter too, but reflected borders.
    """

    def __init__(self, padding: int, stride: int = 1, gain: float = 1.0):
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(row, row) * (gain / 64))
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        return _Depthwise.apply(x, self.kernel, self.stride, self.padding, False)


class EqualConv2d(nn.Module):
    """Convolution without bias of its own; weights divided by the root of the number of inputs."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.scale = (inputs * size**2) ** -0.5
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor, bias: Tensor | None = None, gain: float = 1.0) -> Tensor:
        return F.conv2d(x, self.weight * (self.scale * gain), bias, self.stride, self.padding)


class EqualLinear(nn.Module):
    """(N, inputs) -> (N, outputs), with the leaky ReLU and its gain if `activate`."""

    def __init__(self, inputs: int, outputs: int, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = inputs**-0.5
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * self.scale, self.bias)
        return F.leaky_relu(x, 0.2) * GAIN if self.activate else x


class FusedLeakyReLU(nn.Module):
    """GAIN * leaky_relu(x + bias). Behind a convolution the bias is added there."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))


class ConvLayer(nn.Sequential):
    """(Blur,) EqualConv2d (, FusedLeakyReLU): (N, inputs, H, W) -> (N, outputs, H, W), or half the sides."""

    def __init__(self, inputs: int, outputs: int, size: int, *, downsample: bool = False, activate: bool = True):
        if not downsample:
            layers = [EqualConv2d(inputs, outputs, size, padding=size // 2)]
        elif size == 1:  # convolving pixels and leaving every second out commute: the blur writes no others
            layers = [Blur(padding=1, stride=2), EqualConv2d(inputs, outputs, 1)]
        else:
            layers = [Blur(padding=2), EqualConv2d(inputs, outputs, size, stride=2)]
        super().__init__(*layers, *([FusedLeakyReLU(outputs)] if activate else []))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self[0], Blur):
            x = self[0](x)
        last = self[-1]
        if not isinstance(last, FusedLeakyReLU):
            return last(x)
        x = self[-2](x, GAIN * last.bias.flatten(), GAIN)  # leaky_relu(GAIN x) = GAIN leaky_relu(x)
        return F.leaky_relu_(x, 0.2)


class ResBlock(nn.Module):
    """(conv(conv(x)) + skip) / sqrt 2; the skip is x itself where the shape stays."""

    def __init__(self, inputs: int, outputs: int, downsample: bool):
        super().__init__()
        self.conv1 = ConvLayer(inputs, inputs, 3)
        self.conv2 = ConvLayer(inputs, outputs, 3, downsample=downsample)
        self.skip = ConvLayer(inputs, outputs, 1, downsample=True, activate=False) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) * 2**-0.5


class DemodulatedConv2d(nn.Module):
    """Modulated convolution where every style is 1: each filter is divided by its norm. Doubles the sides.

    The key has the published shape (1, outputs, inputs, 3, 3); channels last wants four dimensions.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.blur = Blur(padding=1, gain=4.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.scale = (9 * inputs) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        return self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"][None]

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = prefix + "weight"
        if key in state_dict and state_dict[key].dim() == 5:
            state_dict[key] = state_dict[key][0]  # of load_state_dict's own copy
        super()._load_from_state_dict(state_dict, prefix, *args)


class NoiseInjection(nn.Module):
    """x + weight * noise, one value of N(0, 1) from torch's global generator per place; the weight starts at 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight.to(x.dtype) * torch.randn_like(x[:, :1])


class StyledConv(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, 2 H, 2 W)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = DemodulatedConv2d(inputs, outputs)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.noise(self.conv(x))
        x = x + self.activate.bias.to(x.dtype)
        return F.leaky_relu_(x, 0.2) * GAIN


class StyleGAN2Generator(TappedGenerator):
    """(N, input_nc, H, W) in [-1, 1] -> (N, output_nc, H, W), unbounded; H and W multiples of 2**(len(channels) - 1).

    `channels`: of the maps at full size, half size, ... of the encoder; the decoder mirrors them (see
    `generator_channels`). Half of the `n_blocks` residual blocks at the smallest size belong to each. Taps: 0 is the
    image, 1 its 1 x 1 convolution, then one per residual block; those past the encoder are the decoder's modules.
    `impl` chooses the implementation of the fused operators (see `kernels.tap_patches`).
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        channels: Sequence[int] = (80, 160),
        n_blocks: int = 6,
        *,
        impl: str = "auto",
    ):
        super().__init__()
        self.impl = impl
        deep = channels[-1]
        blocks = [[ResBlock(deep, deep, downsample=False) for _ in range(n_blocks // 2)] for _ in range(2)]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.convs = nn.Sequential(
            nn.Identity(),
            ConvLayer(input_nc, channels[0], 1),
            *(ResBlock(a, b, downsample=True) for a, b in zip(channels, channels[1:])),
            *blocks[0],
        )
        self.decoder.convs = nn.Sequential(
            *blocks[1],
            *(StyledConv(b, a) for a, b in reversed(list(zip(channels, channels[1:])))),
            ConvLayer(channels[0], output_nc, 1),  # ends in a leaky ReLU, as published
        )

    def chain(self) -> nn.Sequential | list[nn.Module]:
        halves: list[Any] = [self.encoder.convs, self.decoder.convs]
        return [layer for half in halves for layer in half]


class StyleGAN2Discriminator(nn.Module):
    """(N, input_nc, size, size) -> (N, 1) of unbounded scores, for one size: 4 * 2**(len(channels) - 1).

    `channels`: of the maps from full size down to 4 x 4 (see `discriminator_channels`). No minibatch deviation.
    """

    def __init__(self, input_nc: int = 3, channels: Sequence[int] = (32, 64, 128, 256, 384)):
        super().__init__()
        self.size = 4 * 2 ** (len(channels) - 1)
        deep = channels[-1]
        self.convs = nn.Sequential(
            ConvLayer(input_nc, channels[0], 1),
            *(ResBlock(a, b, downsample=True) for a, b in zip(channels, channels[1:])),
        )
        self.final_conv = ConvLayer(deep, deep, 3)
        self.final_linear = nn.Sequential(EqualLinear(16 * deep, deep, activate=True), EqualLinear(deep, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            raise UsageError(
                f"this discriminator judges images of {self.size} x {self.size}, got {x.shape[2]} x {x.shape[3]}"
            )
        return self.final_linear(self.final_conv(self.convs(x)).flatten(1))


def generator_channels(ngf: int, size: int, num_downsampling: int = 1) -> list[int]:
    """Published widths for images of about `size`, taken as the nearest power of two: 512 ngf / size, doubled where the
    sides are halved, at most 512 from 32 x 32 down."""
    sides = _sides(size, num_downsampling + 1)
    return [min(round(512 * ngf / side), 512 if side <= 32 else 2**30) for side in sides]


def discriminator_channels(ndf: int, size: int) -> list[int]:
    """As `generator_channels`, down to 4 x 4: 256 ndf / size, at most 384 from 32 x 32 down."""
    sides = _sides(size, round(math.log2(size)) - 1)
    return [min(256 * ndf // side, 384 if side <= 32 else 2**30) for side in sides]


def _sides(size: int, count: int) -> list[int]:
    return [2 ** round(math.log2(size)) >> level for level in range(count)]


def stylegan2_generator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    if "encoder.convs.1.0.weight" not in state:
        return None
    width, input_nc = state["encoder.convs.1.0.weight"].shape[:2]
    halvings = indices(state, r"encoder\.convs\.(\d+)\.skip\.")
    channels = [width, *(state[f"encoder.convs.{i}.skip.1.weight"].shape[0] for i in halvings)]
    blocks = 2 * (len(indices(state, r"encoder\.convs\.(\d+)\.conv1\.")) - len(halvings))
    last = indices(state, r"decoder\.convs\.(\d+)\.")[-1]
    output_nc = state[f"decoder.convs.{last}.0.weight"].shape[0]
    net = StyleGAN2Generator(input_nc, output_nc, channels, blocks, impl=impl)
    listed = ", ".join(map(str, channels))
    return net, f"StyleGAN2 generator, {blocks} blocks, widths {listed}, {input_nc} -> {output_nc} channels (SinCUT)"


def stylegan2_discriminator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    if not {"convs.0.0.weight", "final_conv.0.weight"} <= set(state):
        return None
    width, input_nc = state["convs.0.0.weight"].shape[:2]
    blocks = indices(state, r"convs\.(\d+)\.skip\.")
    net = StyleGAN2Discriminator(input_nc, [width, *(state[f"convs.{i}.skip.1.weight"].shape[0] for i in blocks)])
    return net, f"StyleGAN2 discriminator of {net.size} x {net.size}, width {width}, {input_nc} channels (SinCUT)"
