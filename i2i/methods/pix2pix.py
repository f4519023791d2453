"""pix2pix: image-to-image translation with conditional adversarial networks (Isola, Zhu, Zhou, Efros; CVPR 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from i2i.config import setting
from i2i.graphs import Draws, Losses
from i2i.methods.base import Method, frozen
from i2i.methods.losses import GANLoss, discriminator_loss, draw_share, gradient_penalty, l1_loss, total
from i2i.methods.translator import TranslatorConfig


@dataclass
class Pix2PixConfig(TranslatorConfig):
    data: tuple[str, ...] = setting(
        (),
        "a folder with train, A and B side by side in each picture; or two folders; empty: sample photographs "
        "(published: dataroot)",
    )
    dataset_mode: str = "aligned"
    generator: str = "unet_256"
    norm: str = "batch"
    dropout: bool = setting(True, "dropout of 0.5 in the generator, its only noise; on in translation, too")
    gan_mode: str = "vanilla"
    lambda_l1: float = setting(100.0, "weight of the distance between a translation and its true answer")

    SAMPLE: ClassVar[dict[str, Any]] = TranslatorConfig.SAMPLE | {"generator": "unet_64"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "lambda_l1")


class Pix2Pix(Method):
    """G translates A to B; D tells pairs of A and B from pairs of A and its translation."""

    name = "pix2pix"
    title = "from pairs (Isola et al., CVPR 2017)"
    Config = Pix2PixConfig
    generator_losses = ("G_GAN", "G_L1")

    config: Pix2PixConfig
    G: nn.Module
    D: nn.Module

    def build(self) -> dict[str, nn.Module]:
        config, impl = self.config, self.impl
        self.gan = GANLoss(config.gan_mode)
        self.rngs["step"] = torch.Generator().manual_seed(config.seed)  # of the gradient penalty
        return {
            "G": config.build_generator(config.input_nc, config.output_nc, impl),
            "D": config.build_discriminator(config.input_nc + config.output_nc, impl),
        }

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: self.adam(name) for name in self.networks}

    def draw(self, *batch: Tensor) -> Draws:
        """Shares of the gradient penalty."""
        return Draws((), draw_share(len(batch[0]), self.rngs["step"]) if self.config.gan_mode == "wgangp" else None)

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """One update of D, then one of G against the new D, on pairs of images (N, C, H, W) in [-1, 1]. Returns the
        losses, detached and with their weights."""
        real_a, real_b = (images.contiguous(memory_format=self.form) for images in batch)
        with self.autocast():
            fake_b = self.G(real_a)

        self.zero_grad("D")
        real, fake = torch.cat([real_a, real_b], 1), torch.cat([real_a, fake_b.detach()], 1)
        with self.autocast():
            losses = discriminator_loss(self.gan, self.D, real, fake)
        if draws.tensors is not None:
            losses["D_GP"] = gradient_penalty(self.D, real, fake, share=draws.tensors)
        self.backward(0.5 * total(losses.values()), last=["D"])
        self.update("D")

        self.zero_grad("G")
        with frozen(self.D), self.autocast():
            scores = self.D(torch.cat([real_a, fake_b], 1))
        g_gan = self.gan.for_generator(scores)
        g_l1 = self.config.lambda_l1 * l1_loss(fake_b, real_b)
        self.backward(g_gan + g_l1, last=["G"])
        self.update("G")
        return {name: loss.detach() for name, loss in ({"G_GAN": g_gan, "G_L1": g_l1} | losses).items()}

    @torch.no_grad()
    def apply(self, name: str, images: Tensor) -> Tensor:
        """As published: with dropout, and with batch norm over the translated image itself; so image by image.

        A function of weights and image alone: masks come from the seed, running statistics and random state stay.
        """
        net = self.translator(name)
        buffers = {key: buffer.clone() for key, buffer in net.named_buffers()}
        results = []
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for image in images.to(self.device, memory_format=self.form).split(1):
                torch.manual_seed(self.config.seed)
                with self.autocast():
                    results.append(functional_call(net, buffers, image).float())
        return torch.cat(results)

    def visuals(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        return {"real_A": real_a, "fake_B": self.translate(real_a), "real_B": real_b}
