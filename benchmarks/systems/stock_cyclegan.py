"""CycleGAN's training step in stock torch, from our weights, images and draws of the image pools."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.systems.stock import Losses, StockMethod, contestants, prepare
from benchmarks.systems.stock_layers import Style
from benchmarks.systems.stock_networks import Discriminator, Generator
from i2i.methods.base import Method
from i2i.methods.cyclegan import CycleGAN, CycleGANConfig
from i2i.methods.losses import total
from i2i.networks import ResnetBlock


class StockCycleGAN(StockMethod):
    """The step of CycleGAN on stock networks: six generators' graphs and the sum of six losses, one backward pass, then
    both discriminators. `careful`: the same order of work, maps as ours, fused Adam."""

    G_A: Generator
    G_B: Generator
    D_A: Discriminator
    D_B: Discriminator

    def __init__(self, config: CycleGANConfig, device: torch.device, style: Style):
        ours = CycleGAN(config)
        rng = ours.rngs["step"]
        blocks = sum(isinstance(layer, ResnetBlock) for layer in ours.networks["G_A"].get_submodule("model").children())
        a, b = config.input_nc, config.output_nc
        networks = {
            "G_A": Generator(style, a, b, config.ngf, blocks, antialias=False),
            "G_B": Generator(style, b, a, config.ngf, blocks, antialias=False),
            "D_A": Discriminator(style, b, config.ndf, antialias=False),
            "D_B": Discriminator(style, a, config.ndf, antialias=False),
        }
        super().__init__(config, device, style, ours, networks)
        self.pools = {domain: Pool(config.pool_size, rng) for domain in "BA"}
        self.optimizers = {"G": self.adam("G_A", "G_B"), "D": self.adam("D_A", "D_B")}
        self.compile(*networks.values())

    def step(self, real_a: Tensor, real_b: Tensor) -> Losses:
        real_a, real_b = self.begin(real_a, real_b)
        config, discriminators = self.config, (self.D_A, self.D_B)
        with self.autocast():
            fake_b = self.G_A(real_a)
            back_a = self.G_B(fake_b)
            fake_a = self.G_B(real_b)
            back_b = self.G_A(fake_a)

        for net in discriminators:
            net.requires_grad_(False)
        losses = {}
        with self.autocast():
            if config.lambda_identity:
                losses["idt_A"] = config.lambda_identity * config.lambda_b * self.l1(self.G_A(real_b), real_b)
                losses["idt_B"] = config.lambda_identity * config.lambda_a * self.l1(self.G_B(real_a), real_a)
            losses["G_A"], losses["G_B"] = self.gan(self.D_A(fake_b), True), self.gan(self.D_B(fake_a), True)
            losses["cycle_A"] = config.lambda_a * self.l1(back_a, real_a)
            losses["cycle_B"] = config.lambda_b * self.l1(back_b, real_b)
        self.update(self.optimizers["G"], total(losses.values()))

        for net in discriminators:
            net.requires_grad_(True)
        self.optimizers["D"].zero_grad()
        losses["D_A"] = self.backward_discriminator(self.D_A, real_b, self.pools["B"].query(fake_b.detach()))
        losses["D_B"] = self.backward_discriminator(self.D_B, real_a, self.pools["A"].query(fake_a.detach()))
        self.optimizers["D"].step()
        return losses

    def backward_discriminator(self, net: Discriminator, real: Tensor, fake: Tensor) -> Tensor:
        with self.autocast():
            loss = 0.5 * (self.gan(net(real), True) + self.gan(net(fake), False))
        loss.backward()
        return loss


class Pool:
    """The published history of translations, with the draws of ours."""

    def __init__(self, size: int, rng: torch.Generator):
        self.size, self.rng = size, rng
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        return torch.cat([self.exchange(image) for image in images.split(1)]) if self.size else images

    def exchange(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if float(torch.rand((), generator=self.rng)) <= 0.5:
            return image
        place = int(torch.randint(self.size, (), generator=self.rng))
        old, self.images[place] = self.images[place], image.clone()
        return old


CONTESTANTS = contestants(
    CycleGAN,
    StockCycleGAN,
    published="the published code's operators and order of work, eager float32 NCHW, with the graphs of six generators "
    "before one backward pass",
    careful="stock operators only, bfloat16 autocast, maps as ours: norm as batch norm of each sample, no in-place "
    "ReLU, padding outside autocast, distances as sums, fused Adam; the published order of work",
    compiled="ReLU as a maximum",
)


def contestant(
    device: str, name: str, size: int, networks: dict[str, Any]
) -> tuple[Method | StockMethod, list[Tensor], int]:
    """What child.py measures: (model, batch, steps at a time)."""
    return prepare(CONTESTANTS[name], CycleGANConfig, device, size, networks)
