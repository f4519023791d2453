"""MUNIT's networks in stock torch, to be measured against: as published, and as a careful user would write them.

As in stock_networks.py: the published keys, and nothing here uses `kernels`. The published code sets scale and shift as
attributes of the norms before it calls the decoder; here they are arguments, which the compiler can follow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.systems.stock_layers import Norm, Pad, Relu, Style, wide

EPS = 1e-5


class AdaptiveNorm(nn.Module):
    """Published: samples folded into channels, one batch norm over them, with running statistics that go nowhere."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, style: Style, channels: int):
        super().__init__()
        self.style = style
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
        """parameters: (N, 2 C), the shifts, then the scales."""
        shift, scale = parameters.chunk(2, 1)
        n, c, h, w = x.shape
        if self.style.careful:
            samples = zip(x.split(1), scale, shift)
            planes = [F.batch_norm(sample, None, None, a, b, training=True, eps=EPS) for sample, a, b in samples]
            return planes[0] if n == 1 else torch.cat(planes)
        statistics = self.running_mean.repeat(n), self.running_var.repeat(n)
        folded = x.contiguous().view(1, n * c, h, w)
        return F.batch_norm(folded, *statistics, scale.flatten(), shift.flatten(), True, 0.1, EPS).view(n, c, h, w)


class LayerNorm(nn.Module):
    """Over a whole sample, divided by its unbiased standard deviation + eps. Careful: one multiply-add behind the
    statistics, and a map in the dtype of the one that came."""

    def __init__(self, style: Style, channels: int):
        super().__init__()
        self.style = style
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = (each.view(1, -1, 1, 1) for each in (self.gamma, self.beta))
        if self.style.careful:
            centred = x - x.mean((1, 2, 3), keepdim=True)
            variance = centred.square().sum((1, 2, 3), keepdim=True) / (x[0].numel() - 1)
            return torch.addcmul(beta.to(x.dtype), centred, (gamma / (variance.sqrt() + EPS)).to(x.dtype))
        samples = (
            x.flatten() if len(x) == 1 else x.flatten(1)
        )  # one sample is a case of its own: the published short cut
        mean, std = (statistic.view(-1, 1, 1, 1) for statistic in (samples.mean(-1), samples.std(-1)))
        return (x - mean) / (std + EPS) * gamma + beta


class ConvBlock(nn.Module):
    """Reflection padding, convolution, norm, activation."""

    def __init__(
        self,
        style: Style,
        inner: int,
        outer: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        norm: nn.Module | None = None,
        activation: nn.Module | None = None,
    ):
        super().__init__()
        self.pad = Pad(style, padding)
        # The published order: the gate compares gradients in the order of the parameters.
        self.norm, self.activation = norm or nn.Identity(), activation or nn.Identity()
        self.conv = nn.Conv2d(inner, outer, kernel, stride)

    def forward(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(self.pad(x)), *parameters))


class ResBlock(nn.Module):
    def __init__(self, style: Style, channels: int, adaptive: bool):
        super().__init__()
        norms = [AdaptiveNorm(style, channels) if adaptive else Norm(style) for _ in range(2)]
        blocks = zip(norms, (Relu(style), None))
        self.model = nn.Sequential(*(ConvBlock(style, channels, channels, 3, 1, 1, *rest) for rest in blocks))

    def forward(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """parameters: (N, 2 C) for each of two adaptive norms, or none."""
        first, second = (parameters[:1], parameters[1:])
        y = self.model[1](self.model[0](x, *first), *second)
        y += x
        return y


class Upsample(nn.Module):
    """Nearest, x2. Autocast would compute it in float32, and hand a float32 map on."""

    def __init__(self, style: Style):
        super().__init__()
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not self.style.careful):
            return F.interpolate(x, scale_factor=2, mode="nearest")


class Layers(nn.Module):
    """`model.0`, `model.1`, ... in the published keys."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Decoder(nn.Module):
    def __init__(self, style: Style, channels: int, output_nc: int, n_upsample: int, n_res: int):
        super().__init__()
        self.parameters_per_sample = 4 * channels * n_res
        net: list[nn.Module] = [Layers(*(ResBlock(style, channels, adaptive=True) for _ in range(n_res)))]
        for _ in range(n_upsample):
            inner, channels = channels, channels // 2
            norm = LayerNorm(style, channels)
            net += [Upsample(style), ConvBlock(style, inner, channels, 5, 1, 2, norm, Relu(style))]
        self.model = nn.Sequential(*net, ConvBlock(style, channels, output_nc, 7, 1, 3, activation=nn.Tanh()))

    def forward(self, content: Tensor, parameters: Tensor) -> Tensor:
        """parameters: (N, 4 C n_res)."""
        blocks = self.model[0].get_submodule("model")
        each, x = parameters.chunk(2 * len(list(blocks.children())), 1), content
        for i, block in enumerate(blocks.children()):
            x = block(x, *each[2 * i : 2 * i + 2])
        return self.model[1:](x)


class LinearBlock(nn.Module):
    def __init__(self, inner: int, outer: int, activation: nn.Module):
        super().__init__()
        self.fc = nn.Linear(inner, outer)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.fc(x))


class StyleNetwork(nn.Module):
    """A style code (N, style_dim, 1, 1) -> the decoder's parameters. In float32 under autocast, too: the published norm
    cannot run with scales in bfloat16 beside running statistics in float32."""

    def __init__(self, style_dim: int, width: int, outputs: int):
        super().__init__()
        first, second = (LinearBlock(inner, width, nn.ReLU(inplace=True)) for inner in (style_dim, width))
        self.model = nn.Sequential(first, second, LinearBlock(width, outputs, nn.Identity()))

    def forward(self, style: Tensor) -> Tensor:
        with torch.autocast(style.device.type, enabled=False):
            return self.model(wide(style.flatten(1)))


class Generator(nn.Module):
    """One domain's auto-encoder."""

    def __init__(self, style: Style, channels: int, dim: int, style_dim: int, n_downsample: int, n_res: int, mlp: int):
        super().__init__()
        widths = [dim, 2 * dim, 4 * dim, 4 * dim, 4 * dim]
        net: list[nn.Module] = [ConvBlock(style, channels, dim, 7, 1, 3, None, Relu(style))]
        net += [ConvBlock(style, a, b, 4, 2, 1, None, Relu(style)) for a, b in zip(widths, widths[1:])]
        self.enc_style = Layers(*net, nn.AdaptiveAvgPool2d(1), nn.Conv2d(4 * dim, style_dim, 1))

        net = [ConvBlock(style, channels, dim, 7, 1, 3, Norm(style), Relu(style))]
        for _ in range(n_downsample):
            net.append(ConvBlock(style, dim, 2 * dim, 4, 2, 1, Norm(style), Relu(style)))
            dim *= 2
        net.append(Layers(*(ResBlock(style, dim, adaptive=False) for _ in range(n_res))))
        self.enc_content = Layers(*net)

        self.dec = Decoder(style, dim, channels, n_downsample, n_res)
        self.mlp = StyleNetwork(style_dim, mlp, self.dec.parameters_per_sample)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(content, style)"""
        return self.enc_content(images), self.enc_style(images)

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        return self.dec(content, self.mlp(style))


class Discriminator(nn.Module):
    def __init__(self, style: Style, channels: int, dim: int, n_layer: int, num_scales: int):
        super().__init__()
        self.cnns = nn.ModuleList()
        widths = [channels, *(dim * 2**level for level in range(n_layer))]
        for _ in range(num_scales):
            blocks = [ConvBlock(style, a, b, 4, 2, 1, None, Relu(style, 0.2)) for a, b in zip(widths, widths[1:])]
            self.cnns.append(nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Scores of each scale."""
        scores = []
        for scale, net in enumerate(self.cnns):
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) if scale else x
            scores.append(net(x))
        return scores
