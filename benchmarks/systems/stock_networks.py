"""The networks of CUT and CycleGAN in stock torch, to be measured against: as published, and as a careful user would
write them.

Sequential indices and state-dict keys are the published ones, so that every contestant starts from the same weights.
`Style` says which way each part is written; nothing here uses `kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.systems.stock_layers import Norm, Pad, Relu, Style


class Downsample(nn.Module):
    def __init__(self, style: Style, channels: int):
        super().__init__()
        self.style = style
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (torch.outer(row, row) / 16).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.style.careful:
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])
        with torch.autocast(x.device.type, enabled=False):
            if not self.style.compiled:  # grouped convolutions of bfloat16 are several times slower, backward
                padded = F.pad(x.to(self.filt.dtype), (1, 1, 1, 1), mode="reflect")
                return F.conv2d(padded, self.filt, stride=2, groups=x.shape[1]).to(x.dtype)
            padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
            rows, columns = ((size + 1) // 2 for size in x.shape[2:])
            total = 0
            for i, a in enumerate((0.25, 0.5, 0.25)):
                for j, b in enumerate((0.25, 0.5, 0.25)):
                    total = total + a * b * padded[:, :, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            return total


class Upsample(nn.Module):
    def __init__(self, style: Style, channels: int):
        super().__init__()
        self.style = style
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("filt", (torch.outer(row, row) / 16).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.style.careful:
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv_transpose2d(padded, self.filt, stride=2, padding=2, groups=x.shape[1])[:, :, 1:, 1:][
            :, :, :-1, :-1
        ]


class Block(nn.Module):
    def __init__(self, style: Style, channels: int):
        super().__init__()
        conv = [Pad(style, 1), nn.Conv2d(channels, channels, 3), Norm(style)]
        again = [Pad(style, 1), nn.Conv2d(channels, channels, 3), Norm(style)]
        self.conv_block = nn.Sequential(*conv, Relu(style), *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """ResNet, with antialiased sampling (CUT's default) or with strided convolutions (CycleGAN's)."""

    def __init__(
        self, style: Style, input_nc: int, output_nc: int, ngf: int = 64, n_blocks: int = 9, antialias: bool = True
    ):
        super().__init__()
        net: list[nn.Module] = [Pad(style, 3), nn.Conv2d(input_nc, ngf, 7), Norm(style), Relu(style)]
        for width in (ngf, 2 * ngf):
            stride = 1 if antialias else 2
            net += [nn.Conv2d(width, 2 * width, 3, stride, padding=1), Norm(style), Relu(style)]
            net += [Downsample(style, 2 * width)] if antialias else []
        net += [Block(style, 4 * ngf) for _ in range(n_blocks)]
        for width in (4 * ngf, 2 * ngf):
            if antialias:
                net += [Upsample(style, width), nn.Conv2d(width, width // 2, 3, padding=1)]
            else:
                net.append(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1))
            net += [Norm(style), Relu(style)]
        net += [Pad(style, 3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh()]
        self.model = nn.Sequential(*net)

    def forward(self, x: Tensor, layers: Sequence[int] = (), encode_only: bool = False):
        """The output; with `layers` also the maps behind them, with `encode_only` those alone."""
        maps = []
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in layers:
                maps.append(x)
                if encode_only and index == layers[-1]:
                    return maps
        return (x, maps) if layers else x


class Discriminator(nn.Module):
    """PatchGAN of three levels, with antialiased sampling (CUT's default) or with strided convolutions (CycleGAN's)."""

    def __init__(self, style: Style, input_nc: int, ndf: int = 64, antialias: bool = True):
        super().__init__()
        stride = 1 if antialias else 2
        net: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride, padding=1), Relu(style, 0.2)]
        width = ndf
        for level in (1, 2, 3):
            net += [Downsample(style, width)] if antialias else []
            inner, width = width, ndf * 2**level
            conv = nn.Conv2d(inner, width, 4, stride if level < 3 else 1, padding=1)
            net += [conv, Norm(style), Relu(style, 0.2)]
        net.append(nn.Conv2d(width, 1, 4, padding=1))
        self.model = nn.Sequential(*net)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PatchFeatures(nn.Module):
    """PatchSampleF in its `mlp_sample` form."""

    def __init__(self, channels: Sequence[int], width: int = 256):
        super().__init__()
        for i, c in enumerate(channels):
            self.add_module(f"mlp_{i}", nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)))

    def forward(self, maps: Sequence[Tensor], ids: Sequence[Tensor]) -> list[Tensor]:
        """Rows (B * P, width) of unit length, for each map."""
        rows = []
        for i, (x, at) in enumerate(zip(maps, ids)):
            # Published: x.permute(0, 2, 3, 1).flatten(1, 2)[:, at]. Its gradient arrives channels last at the instance
            # norms before it, which torch 2.13 on a CPU answers with a wrong one at batch 1. Same numbers:
            patches = x.flatten(2)[:, :, at].transpose(1, 2).flatten(0, 1)
            y = self.get_submodule(f"mlp_{i}")(patches)
            rows.append(y / (y.pow(2).sum(1, keepdim=True).pow(0.5) + 1e-7))
        return rows
