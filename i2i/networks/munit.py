"""MUNIT's networks (Huang, Liu, Belongie, Kautz; ECCV 2018, arXiv 1804.04732): an image as content and style.

State-dict keys are those of the published `gen_*.pt` and `dis_*.pt`. Scale and shift of the adaptive norms go through
the decoder as arguments and never become attributes of it: the modules hold parameters and nothing of a call, so they
can be shared by threads and replicas, compiled and exported.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from i2i.networks.keys import Recognised, Settings, State
from i2i.networks.norms import Conv2dBeforeNorm

STYLE_DOWNSAMPLINGS = 4  # of the style encoder, whatever the content encoder's


class MunitAdaptiveNorm(kernels.AdaptiveInstanceNorm2d):
    """With the two buffers of the published module, which were never read and never changed."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, activation: str = "none", padding: int = 0, impl: str = "auto"):
        super().__init__(channels, activation=activation, padding=padding, impl=impl)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


class ConvBlock(nn.Module):
    """Reflection padding, convolution, then `norm`: a fused norm and activation, or a bare activation.

    `padding`: 0 where the norm before has padded already.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, padding: int, impl: str):
        super().__init__()
        self.pad = kernels.ReflectionPad2d(padding, impl=impl) if padding else nn.Identity()
        self.norm = norm
        self.conv = conv

    def forward(self, x: Tensor, **norm_arguments: Tensor) -> Tensor:
        return self.norm(self.conv(self.pad(x)), **norm_arguments)


class ResBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), shape kept; no activation after the sum."""

    def __init__(self, channels: int, norm: type[nn.Module], impl: str):
        super().__init__()
        first = norm(channels, activation="relu", padding=1, impl=impl)
        self.model = nn.Sequential(
            ConvBlock(Conv2dBeforeNorm(channels, channels, 3), first, 1, impl),
            ConvBlock(Conv2dBeforeNorm(channels, channels, 3), norm(channels, impl=impl), 0, impl),
        )

    def forward(self, x: Tensor, parameters: Tensor | None = None) -> Tensor:
        """parameters: (N, 2 norms, shift and scale, C) of adaptive norms."""
        first, second = ({}, {}) if parameters is None else map(scale_and_shift, parameters.unbind(1))
        return self.model[1](self.model[0](x, **first), **second, residual=x)


def scale_and_shift(parameters: Tensor) -> dict[str, Tensor]:
    """(N, 2, C) in MUNIT's order: shift first."""
    shift, scale = parameters.unbind(1)
    return {"scale": scale, "shift": shift}


class Layers(nn.Module):
    """`model.0`, `model.1`, ... in the published keys."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LinearBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, activation: nn.Module):
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.fc(x))


class Decoder(nn.Module):
    """Content (N, C, h, w) and parameters (N, 4 C n_res) of its adaptive norms -> images (N, output_nc, H, W)."""

    def __init__(self, channels: int, output_nc: int, n_upsample: int, n_res: int, impl: str):
        super().__init__()
        self.parameters_per_sample = 4 * channels * n_res
        net: list[nn.Module] = [Layers(*(ResBlock(channels, MunitAdaptiveNorm, impl) for _ in range(n_res)))]
        for level in range(n_upsample):
            last = level == n_upsample - 1
            channels //= 2
            norm = kernels.MunitLayerNorm(channels, activation="relu", padding=3 if last else 0, impl=impl)
            net.append(nn.Upsample(scale_factor=2))
            net.append(ConvBlock(nn.Conv2d(2 * channels, channels, 5), norm, 2, impl))
        net.append(ConvBlock(nn.Conv2d(channels, output_nc, 7), nn.Tanh(), 0, impl))
        self.model = nn.Sequential(*net)

    def forward(self, content: Tensor, parameters: Tensor) -> Tensor:
        x = content
        blocks: Any = self.model[0].model
        for block, own in zip(blocks, parameters.unflatten(1, (len(blocks), 2, 2, -1)).unbind(1), strict=True):
            x = block(x, own)
        return self.model[1:](x)


class MunitGenerator(nn.Module):
    """One domain's auto-encoder: images (N, input_nc, H, W) in [-1, 1] <-> content (N, C, H / 2**n_downsample, W / ...)
    and style (N, style_dim, 1, 1). H and W are multiples of 2**n_downsample; C = dim * 2**n_downsample.

    `impl` chooses the implementation of the fused operators (see `kernels.instance_norm`).
    """

    def __init__(
        self,
        input_nc: int = 3,
        dim: int = 64,
        style_dim: int = 8,
        n_downsample: int = 2,
        n_res: int = 4,
        mlp_dim: int = 256,
        *,
        impl: str = "auto",
    ):
        super().__init__()
        self.style_dim = style_dim
        channels = dim * 2**n_downsample
        self.enc_style = Layers(*style_encoder(input_nc, dim, style_dim, impl))
        self.enc_content = Layers(*content_encoder(input_nc, dim, n_downsample, n_res, impl))
        self.dec = Decoder(channels, input_nc, n_downsample, n_res, impl)
        self.mlp = Layers(
            LinearBlock(style_dim, mlp_dim, nn.ReLU()),
            LinearBlock(mlp_dim, mlp_dim, nn.ReLU()),
            LinearBlock(mlp_dim, self.dec.parameters_per_sample, nn.Identity()),
        )

    def encode_content(self, images: Tensor) -> Tensor:
        return self.enc_content(images)

    def encode_style(self, images: Tensor) -> Tensor:
        return self.enc_style(images)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_content(images), self.encode_style(images)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """Images in (-1, 1) with this content, of either domain's encoder, and this domain's style."""
        return self.dec(content, self.mlp(style.flatten(1)))

    def forward(self, images: Tensor, style: Tensor | None = None) -> Tensor:
        """Images of this domain in another style, or in their own: reconstructed."""
        return self.decode(self.encode_content(images), self.encode_style(images) if style is None else style)


class MunitTranslator(nn.Module):
    """Images (N, C, H, W) of one domain in [-1, 1] -> their content in a style of the other, (N, C', H, W) in (-1, 1).

    `style`: (N, style_dim, 1, 1), sampled (`sample_styles`) or of examples (`target.encode_style`), or one for all;
    several for one image give several results. Without, zeros: the middle of what styles are sampled from in training.
    H and W as for MunitGenerator.
    """

    style: Tensor

    def __init__(self, source: MunitGenerator, target: MunitGenerator, style: Tensor | None = None):
        super().__init__()
        self.source, self.target = source, target
        if style is None:
            last: Any = target.enc_style.model[-1]
            style = last.weight.new_zeros(1, target.style_dim, 1, 1)
        self.register_buffer("style", style, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        content = self.source.encode_content(images)
        count = max(len(content), len(self.style))
        return self.target.decode(content.expand(count, -1, -1, -1), self.style.expand(count, -1, -1, -1))

    def in_style(self, style: Tensor) -> MunitTranslator:
        """The same generators, another style."""
        return MunitTranslator(self.source, self.target, style)


def sample_styles(count: int, style_dim: int, seed: int) -> Tensor:
    """(count, style_dim, 1, 1) from N(0, I), on the CPU: the same for a seed on every machine."""
    return torch.randn(count, style_dim, 1, 1, generator=torch.Generator().manual_seed(seed))


def style_encoder(input_nc: int, dim: int, style_dim: int, impl: str) -> list[nn.Module]:
    """No norm here: it would take away the mean and spread that a style consists of."""
    widths = [dim, 2 * dim, *[4 * dim] * (STYLE_DOWNSAMPLINGS - 1)]
    net: list[nn.Module] = [ConvBlock(nn.Conv2d(input_nc, dim, 7), nn.ReLU(inplace=True), 3, impl)]
    for inner, outer in zip(widths, widths[1:]):
        net.append(ConvBlock(nn.Conv2d(inner, outer, 4, stride=2), nn.ReLU(inplace=True), 1, impl))
    return [*net, nn.AdaptiveAvgPool2d(1), nn.Conv2d(widths[-1], style_dim, 1)]


def content_encoder(input_nc: int, dim: int, n_downsample: int, n_res: int, impl: str) -> list[nn.Module]:
    def norm_relu(channels: int, last: bool) -> nn.Module:
        return kernels.InstanceNorm2d(channels, activation="relu", padding=0 if last else 1, impl=impl)

    net: list[nn.Module] = [ConvBlock(Conv2dBeforeNorm(input_nc, dim, 7), norm_relu(dim, last=False), 3, impl)]
    for level in range(1, n_downsample + 1):
        conv = Conv2dBeforeNorm(dim, 2 * dim, 4, stride=2)
        dim *= 2
        net.append(ConvBlock(conv, norm_relu(dim, last=level == n_downsample), 0, impl))
    return [*net, Layers(*(ResBlock(dim, kernels.InstanceNorm2d, impl) for _ in range(n_res)))]


class MunitDiscriminator(nn.Module):
    """(N, input_nc, H, W) -> for each of `num_scales` networks, each at half the size of the one before, unbounded
    scores (N, 1, h, w). No norm. H and W are at least 2**(n_layer + num_scales - 1)."""

    def __init__(self, input_nc: int = 3, dim: int = 64, n_layer: int = 4, num_scales: int = 3, *, impl: str = "auto"):
        super().__init__()
        self.cnns = nn.ModuleList()
        for _ in range(num_scales):
            widths = [input_nc, *(dim * 2**level for level in range(n_layer))]
            blocks = [
                ConvBlock(nn.Conv2d(inner, outer, 4, stride=2), nn.LeakyReLU(0.2, inplace=True), 1, impl)
                for inner, outer in zip(widths, widths[1:])
            ]
            self.cnns.append(nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        scores = []
        for scale, net in enumerate(self.cnns):
            if scale:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            scores.append(net(x))
        return scores


def munit_translator(state: State, impl: str, config: Settings) -> Recognised | None:
    """From both domains' generators, keys `source.` and `target.` in front of the published ones."""
    source, target = (generator_of(state, f"{part}.", impl) for part in ("source", "target"))
    if source is None or target is None:
        return None
    return MunitTranslator(source, target), f"MUNIT translator, {described(source)} -> {described(target)}"


def munit_generator(state: State, impl: str, config: Settings) -> Recognised | None:
    net = generator_of(state, "", impl)
    return net and (net, f"MUNIT generator of one domain, {described(net)}")


def munit_discriminator(state: State, impl: str, config: Settings) -> Recognised | None:
    if "cnns.0.0.conv.weight" not in state:
        return None
    dim, input_nc = state["cnns.0.0.conv.weight"].shape[:2]
    scales = len({key.split(".")[1] for key in state if key.startswith("cnns.")})
    n_layer = len({key for key in state if key.startswith("cnns.0.")}) // 2 - 1  # and the last convolution
    net = MunitDiscriminator(input_nc, dim, n_layer, scales, impl=impl)
    return net, f"MUNIT discriminator, {scales} scales of {n_layer} layers, width {dim}, {input_nc} channels"


def generator_of(state: State, prefix: str, impl: str) -> MunitGenerator | None:
    """The generator that the keys after `prefix` and their shapes are of, without its weights."""

    def shape(key: str) -> torch.Size:
        return state[f"{prefix}{key}.weight"].shape

    if f"{prefix}enc_style.model.0.conv.weight" not in state:
        return None
    dim, input_nc = shape("enc_style.model.0.conv")[:2]
    n_adain, mlp_dim = shape("mlp.model.2.fc")
    channels = shape("dec.model.0.model.0.model.0.conv")[0]
    return MunitGenerator(
        input_nc,
        dim,
        style_dim=shape("mlp.model.0.fc")[1],
        n_downsample=(channels // dim).bit_length() - 1,
        n_res=n_adain // (4 * channels),
        mlp_dim=mlp_dim,
        impl=impl,
    )


def described(net: MunitGenerator) -> str:
    conv: Any = net.enc_style.model[0].conv
    return f"{conv.in_channels} channels, width {conv.out_channels}, {net.style_dim} numbers of style"
