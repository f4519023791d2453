"""From the keys and shapes of a state dict to the network it belongs to: the list of all recognisers.

A recogniser stands in the file of its network. It takes (state, impl, config) and returns (network, one sentence), or
None where the state is of another family. `config` is what a checkpoint of ours says beside its weights, {} for a
published file.
"""

from __future__ import annotations

from collections.abc import Callable

from i2i.networks.discogan import discogan_discriminator, discogan_generator
from i2i.networks.keys import Recognised, Settings, State
from i2i.networks.munit import munit_discriminator, munit_generator, munit_translator
from i2i.networks.opgan import siamese_network
from i2i.networks.patch_features import patch_features
from i2i.networks.patchgan import patch_discriminator, pixel_discriminator
from i2i.networks.resnet import resnet_generator
from i2i.networks.stargan import stargan_discriminator, stargan_generator
from i2i.networks.stylegan2 import stylegan2_discriminator, stylegan2_generator
from i2i.networks.unet import unet_generator

Recogniser = Callable[[State, str, Settings], Recognised | None]

RECOGNISERS: list[Recogniser] = [
    resnet_generator,
    unet_generator,
    patch_discriminator,
    pixel_discriminator,
    patch_features,
    stylegan2_generator,
    stylegan2_discriminator,
    munit_translator,
    munit_generator,
    munit_discriminator,
    stargan_generator,
    stargan_discriminator,
    discogan_generator,
    discogan_discriminator,
    siamese_network,
]
