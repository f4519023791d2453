"""The networks and settings that CycleGAN and pix2pix, which share a published repository, have in common."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from i2i.config import NetworkConfig, setting
from i2i.networks import discriminator, generator, init_weights, size_multiple


@dataclass
class TranslatorConfig(NetworkConfig):
    """Settings that both take and refuse alike, and how they build their networks."""

    generator: str = setting("resnet_9blocks", "resnet_<n>blocks or unet_<n> (published: netG)")
    discriminator: str = setting("basic", "basic, n_layers or pixel (published: netD)")
    n_epochs: int = 100
    n_epochs_decay: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.generator.startswith(("resnet_", "unet_")), "generator", "a resnet or a unet")
        self.one_of("discriminator", ("basic", "n_layers", "pixel"))
        multiple = size_multiple(self.generator)
        if "crop" in self.preprocess:
            wanted = f"a multiple of {multiple} for {self.generator}, at least 32"
            self.require(self.crop_size % multiple == 0 and self.crop_size >= 32, "crop_size", wanted)

    def build_generator(self, input_nc: int, output_nc: int, impl: str) -> nn.Module:
        options = {"norm": self.norm, "dropout": self.dropout, "antialias_down": False, "antialias_up": False}
        net = generator(self.generator, input_nc, output_nc, self.ngf, **options, impl=impl)
        return init_weights(net, self.init_type, self.init_gain)

    def build_discriminator(self, input_nc: int, impl: str) -> nn.Module:
        options = {"n_layers": self.n_layers_d, "norm": self.norm, "antialias": False}
        net = discriminator(self.discriminator, input_nc, self.ndf, **options, impl=impl)
        return init_weights(net, self.init_type, self.init_gain)
