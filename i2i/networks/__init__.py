"""Networks of the published systems, one file per family, with the keys of the published checkpoints."""

import kernels

if not hasattr(kernels, "instance_norm"):  # first of all: the files below use it as soon as they are imported
    raise ImportError(
        f"{kernels.__file__} is another package named `kernels` (PyPI has one); i2i needs the one of its own project: "
        "run `pip uninstall kernels`, or give each its own environment"
    )

from i2i.networks.factory import DISCRIMINATORS, GENERATORS, discriminator, generator, size_multiple
from i2i.networks.init import INIT_TYPES, init_weights
from i2i.networks.norms import NORMS
from i2i.networks.patch_features import PatchFeatureNetwork, PooledFeatures, SampledFeatures, feature_network
from i2i.networks.patchgan import PatchDiscriminator, PixelDiscriminator
from i2i.networks.resnet import ResnetBlock, ResnetGenerator
from i2i.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from i2i.networks.taps import NCE_LAYERS, TappedGenerator
from i2i.networks.unet import UnetGenerator

__all__ = [
    "DISCRIMINATORS",
    "GENERATORS",
    "INIT_TYPES",
    "NCE_LAYERS",
    "NORMS",
    "PatchDiscriminator",
    "PatchFeatureNetwork",
    "PixelDiscriminator",
    "PooledFeatures",
    "ResnetBlock",
    "ResnetGenerator",
    "SampledFeatures",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "TappedGenerator",
    "UnetGenerator",
    "discriminator",
    "feature_network",
    "generator",
    "init_weights",
    "size_multiple",
]
