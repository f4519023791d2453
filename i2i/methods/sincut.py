"""SinCUT: CUT on one image of each domain (Park, Efros, Zhang, Zhu; ECCV 2020, "High-resolution single image
translation")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from i2i.config import setting
from i2i.graphs import Losses
from i2i.methods.cut import CUT, CUTConfig, Rows
from i2i.methods.losses import image_gradient
from kernels._dtypes import wide


@dataclass
class SinCUTConfig(CUTConfig):
    dataset_mode: str = "singleimage"
    preprocess: str = "zoom_and_patch"
    load_size: int = 1024
    crop_size: int = 64
    batch_size: int = 16
    lr: float = 2e-3
    beta1: float = 0.0
    beta2: float = 0.99
    n_epochs: int = setting(8, "epochs of 100,000 crops at the full learning rate")
    n_epochs_decay: int = 8
    keep_every: int = 1
    generator: str = "stylegan2"
    discriminator: str = "stylegan2"
    ngf: int = 10
    ndf: int = 8
    gan_mode: str = "nonsaturating"
    lambda_nce: float = 4.0
    nce_layers: tuple[int, ...] = (0, 2, 4)
    num_patches: int = 1
    negatives: str = "minibatch"
    lambda_r1: float = setting(1.0, "weight of the penalty on the discriminator's gradient (R1)")
    lambda_identity: float = setting(1.0, "weight of the mean absolute difference between B and its translation")

    SAMPLE: ClassVar[dict[str, Any]] = CUTConfig.SAMPLE | {
        "generator": "stylegan2",
        "ngf": 4,
        "ndf": 4,
        "batch_size": 4,
        "n_epochs": 6,
        "n_epochs_decay": 6,
        "num_patches": 1,
        "ema": 0.0,  # too few steps for one
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "lambda_r1", "lambda_identity")
        if self.lambda_identity > 0:
            only = "0 without nce_idt or lambda_nce: only they take B through G"
            self.require(self.translates_b, "lambda_identity", only)
            straight = not self.flip_equivariance
            self.require(straight, "flip_equivariance", "false with lambda_identity, which compares pixel by pixel")


class SinCUT(CUT):
    """CUT on StyleGAN2's networks. Crops of one image contrast with each other, one patch of each; D is held smooth
    around real crops (R1, Mescheder et al. 2018, in every step), and G keeps B as it is, pixel by pixel."""

    name = "sincut"
    title = "one image of each domain, from crops (Park et al., ECCV 2020)"
    Config = SinCUTConfig
    full_view_in_decay = False

    config: SinCUTConfig

    def backward_discriminator(self, real: Tensor, fake: Tensor, share: Tensor | None) -> Losses:
        losses = super().backward_discriminator(real, fake, share)
        slope = image_gradient(self.D, real)
        penalty = 0.5 * self.config.lambda_r1 * slope.square().sum((1, 2, 3)).mean()
        self.backward(penalty)
        return losses | {"D_R1": penalty.detach()}

    def backward_generator(
        self, translated: Sequence[Tensor], keys: Sequence[Rows], real_b: Tensor, drawn: dict[str, Any]
    ) -> Losses:
        losses = super().backward_generator(translated, keys, real_b, drawn)
        if not self.config.lambda_identity:
            return losses
        loss = self.config.lambda_identity * F.l1_loss(wide(translated[1]), real_b)
        self.backward(loss)
        return losses | {"idt": loss.detach(), "G": losses["G"] + loss.detach()}
