"""DiscoGAN: cross-domain relations from unpaired images (Kim, Cha, Kim, Lee, Kim; ICML 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i.config import Config, setting
from i2i.errors import UsageError
from i2i.graphs import Draws, Losses
from i2i.methods.alternating import Alternating
from i2i.methods.base import frozen
from i2i.methods.losses import total
from i2i.networks.discogan import DiscoGANDiscriminator, DiscoGANGenerator
from kernels._dtypes import wide

SIDE = 64  # pixels; the discriminator's last convolution spans an image of this size


@dataclass
class DiscoGANConfig(Config):
    load_size: int = SIDE
    crop_size: int = SIDE
    flip: bool = False
    batch_size: int = 64
    extra_layers: bool = setting(False, "reduce images to a single vector inside the generators")
    ngf: int = setting(64, "channels of the generator's first layer")
    ndf: int = setting(64, "channels of the discriminator's first layer")
    starting_rate: float = setting(0.01, "weight r of the reconstruction loss at first; the other losses have 1 - r")
    default_rate: float = setting(0.5, "weight r from iteration gan_curriculum on")
    gan_curriculum: int = setting(10_000, "iterations with starting_rate before default_rate")
    update_interval: int = setting(
        3, "iterations of which the first updates the discriminators and the others the generators"
    )
    weight_decay: float = setting(1e-5, "of Adam, for all weights")
    n_epochs: int = 5000
    n_epochs_decay: int = 0
    keep_every: int = 500

    SAMPLE: ClassVar[dict[str, Any]] = Config.SAMPLE | {
        "batch_size": 8,
        "ngf": 16,
        "ndf": 16,
        "gan_curriculum": 100,
        "n_epochs": 100,
        "n_epochs_decay": 50,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "ngf", "ndf")
        self.at_least(2, "batch_size", "update_interval")
        self.at_least(0, "gan_curriculum", "weight_decay")
        self.require(self.crop_size == SIDE, "crop_size", f"{SIDE}, which the discriminator is made for")
        self.require(self.input_nc == self.output_nc, "output_nc", f"as input_nc ({self.input_nc}), for feature maps")
        for name in ("starting_rate", "default_rate"):
            self.require(0 <= getattr(self, name) <= 1, name, "in [0, 1]")

    def check_image(self, width: int, height: int) -> None:
        if (width, height) != (SIDE, SIDE):
            raise UsageError(f"not of {SIDE} x {SIDE}, the one size that the discriminator is made for")


class DiscoGAN(Alternating):
    """G_A translates A to B and G_B back; D_A tells B from G_A's images, D_B tells A from G_B's (the letters of
    CycleGAN's files; in the published code a network is named after the domain of its images)."""

    name = "discogan"
    title = "unpaired, by cycles and matched features (Kim et al., ICML 2017)"
    Config = DiscoGANConfig
    generators = ("G_A", "G_B")
    generator_losses = ("G_A", "FM_A", "rec_A", "G_B", "FM_B", "rec_B")
    losses = ("D_A", "D_B", *generator_losses)

    config: DiscoGANConfig
    G_A: DiscoGANGenerator
    G_B: DiscoGANGenerator
    D_A: DiscoGANDiscriminator
    D_B: DiscoGANDiscriminator

    def build(self) -> dict[str, nn.Module]:
        """With torch's own initialisation, as published."""
        config = self.config
        generators: dict[str, nn.Module] = {
            name: DiscoGANGenerator(config.input_nc, extra_layers=config.extra_layers, conv_dim=config.ngf)
            for name in ("G_A", "G_B")
        }
        return generators | {
            name: DiscoGANDiscriminator(config.input_nc, conv_dim=config.ndf) for name in ("D_A", "D_B")
        }

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        decay = self.config.weight_decay
        return {side: self.adam(f"{side}_A", f"{side}_B", weight_decay=decay) for side in ("G", "D")}

    def draw(self, *batch: Tensor) -> Draws:
        """Whose turn it is, and the weight r of the reconstruction loss."""
        for images in batch:
            if images.shape[2:] != (SIDE, SIDE):
                size = f"{images.shape[3]} x {images.shape[2]}"
                raise UsageError(f"preprocess must bring images to {SIDE} x {SIDE} pixels for DiscoGAN, got {size}")
        if self.iteration % self.config.update_interval == 0:
            return Draws(("D",))
        begun = self.iteration >= self.config.gan_curriculum
        return Draws(("G", self.config.default_rate if begun else self.config.starting_rate))

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """One update of both discriminators or of both generators, on images (N, C, 64, 64) in [-1, 1]."""
        real_a, real_b = (images.contiguous(memory_format=self.form) for images in batch)
        if draws.variant == ("D",):
            with torch.no_grad():
                fake_b, fake_a = self.through(self.G_A, real_a), self.through(self.G_B, real_b)
            self.zero_grad("D")
            losses = {
                "D_A": self.discriminator_loss("D_A", real_b, fake_b),
                "D_B": self.discriminator_loss("D_B", real_a, fake_a),
            }
            self.update("D")
        else:
            _, rate = draws.variant
            self.zero_grad("G")
            with frozen(self.D_A, self.D_B):
                losses = self.backward_generators("A", real_a, real_b, rate)
                losses |= self.backward_generators("B", real_b, real_a, rate)
            self.update("G")
        return {name: loss.detach() for name, loss in losses.items()}

    def through(self, network: nn.Module, images: Tensor) -> Any:
        with self.autocast():
            return network(images)

    def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """Cross entropy of discriminator `name`, half for real images and half for translated ones; taken back."""
        discriminator = self.networks[name]
        scores_real, scores_fake = (wide(self.through(discriminator, images)[0]) for images in (real, fake))
        loss = 0.5 * (F.softplus(-scores_real).mean() + F.softplus(scores_fake).mean())
        self.backward(loss, last=[name])
        return loss

    def backward_generators(self, letter: str, source: Tensor, real: Tensor, rate: Any) -> Losses:
        """Of the translation of `source` by G_`letter`, beside `real` images of the domain it translates to. They are
        taken back: as far as a copy of the translation, then once through the generator."""
        forth, discriminator = self.networks[f"G_{letter}"], self.networks[f"D_{letter}"]
        other = "B" if letter == "A" else "A"
        back = self.networks[f"G_{other}"]
        second = letter == "B"  # of the two directions: in it each generator has its last backward pass
        fake = self.through(forth, source)
        copy = fake.detach().requires_grad_()

        with torch.no_grad():  # the generators have no part in these
            _, wanted = self.through(discriminator, real)
        scores, features = self.through(discriminator, copy)
        gan, matching = F.softplus(-wide(scores)).mean(), feature_matching(features, wanted)
        self.backward((1 - rate) * (0.1 * gan + 0.9 * matching))
        # Half the difference: the published mean is over images in [0, 1].
        around = wide(self.through(back, copy))
        reconstruction = (0.5 * (around - source)).square().mean()
        self.backward(rate * reconstruction, last=[f"G_{other}"] if second else [])
        self.go_back([fake], [copy.grad], last=[f"G_{letter}"] if second else [])
        return {f"G_{letter}": gan, f"FM_{letter}": matching, f"rec_{letter}": reconstruction}

    def visuals(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        fake_b, fake_a = self.apply("G_A", real_a), self.apply("G_B", real_b)
        return {
            "real_A": real_a,
            "fake_B": fake_b,
            "rec_A": self.apply("G_B", fake_b),
            "real_B": real_b,
            "fake_A": fake_a,
            "rec_B": self.apply("G_A", fake_a),
        }


def feature_matching(features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Squared difference of the maps' means over the batch: mean over a map, summed over the maps."""
    means = [[wide(maps).mean(0) for maps in pair] for pair in zip(features, wanted, strict=True)]
    return total((fake - real).square().mean() for fake, real in means)
