"""Networks by the names of the published options `netG` and `netD`."""

from __future__ import annotations

import re

from torch import nn

from i2i.errors import UsageError
from i2i.networks.patchgan import PatchDiscriminator, PixelDiscriminator
from i2i.networks.resnet import ResnetGenerator
from i2i.networks.stylegan2 import (
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    discriminator_channels,
    generator_channels,
)
from i2i.networks.unet import UnetGenerator

# Published: 9, 6 or 4 blocks, and unet_128 and unet_256. Sides must be multiples of the number in a U-Net's name.
UNET_DOWNS = {f"unet_{2**downs}": downs for downs in range(5, 11)}
GENERATORS = ("resnet_<n>blocks", *UNET_DOWNS, "stylegan2")
DISCRIMINATORS = ("basic", "n_layers", "pixel", "stylegan2")


def generator(
    name: str,
    input_nc: int = 3,
    output_nc: int = 3,
    ngf: int = 64,
    *,
    norm: str = "instance",
    dropout: bool = False,
    antialias_down: bool = True,
    antialias_up: bool = True,
    size: int = 256,
    impl: str = "auto",
) -> nn.Module:
    """One of GENERATORS, with torch's own initial weights (see `init_weights`).

    Published options that a family has no use for are ignored: `antialias_*` is for ResNets, `norm` and `dropout` are
    for ResNets and U-Nets, `size`, the side of the images, is for StyleGAN2, whose width follows from it. UsageError
    for a name or norm that does not exist.
    """
    if match := re.fullmatch(r"resnet_([1-9]\d*)blocks", name):
        antialias = {"antialias_down": antialias_down, "antialias_up": antialias_up}
        blocks = int(match[1])
        return ResnetGenerator(input_nc, output_nc, ngf, blocks, norm=norm, dropout=dropout, **antialias, impl=impl)
    if name in UNET_DOWNS:
        downs = UNET_DOWNS[name]
        return UnetGenerator(input_nc, output_nc, ngf, downs, norm=norm, dropout=dropout, impl=impl)
    if name == "stylegan2":
        return StyleGAN2Generator(input_nc, output_nc, generator_channels(ngf, size), impl=impl)
    raise UsageError(f"generator must be one of {', '.join(GENERATORS)}, got {name!r}")


def size_multiple(name: str) -> int:
    """What the sides of images must be multiples of, for generator `name`."""
    return 2 ** UNET_DOWNS.get(name, 2)


def discriminator(
    name: str,
    input_nc: int = 3,
    ndf: int = 64,
    *,
    n_layers: int = 3,
    norm: str = "instance",
    antialias: bool = True,
    size: int = 256,
    impl: str = "auto",
) -> nn.Module:
    """One of DISCRIMINATORS: "basic" is "n_layers" with 3 of them.

    As `generator`: `n_layers` is for "n_layers", `antialias` for that and "basic", `size` for "stylegan2".
    """
    if name in ("basic", "n_layers"):
        layers = 3 if name == "basic" else n_layers
        return PatchDiscriminator(input_nc, ndf, layers, norm=norm, antialias=antialias, impl=impl)
    if name == "pixel":
        return PixelDiscriminator(input_nc, ndf, norm=norm, impl=impl)
    if name == "stylegan2":
        return StyleGAN2Discriminator(input_nc, discriminator_channels(ndf, size))
    raise UsageError(f"discriminator must be one of {', '.join(DISCRIMINATORS)}, got {name!r}")
