"""MUNIT's training step in stock torch, from our weights, images and draws of styles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.systems.stock import Losses, StockMethod, contestants, prepare
from benchmarks.systems.stock_layers import Style
from benchmarks.systems.stock_munit_networks import Discriminator, Generator
from i2i.methods.base import Method
from i2i.methods.losses import total
from i2i.methods.munit import BOTH_WAYS, MUNIT, MUNITConfig

ByDomain = dict[str, Tensor]  # "a" and "b"


class StockMUNIT(StockMethod):
    """The step of MUNIT on stock networks.

    Published: contents and styles are encoded for each of both updates; the discriminators' goes through generators
    with a graph, the generators' leaves gradients for discriminators that nobody uses. `careful`: maps as ours, fused
    Adam, contents encoded once, no graph and no gradient that nobody uses, discriminators on real and translated images
    in one batch. The learning rate is the first one throughout. ValueError for the perceptual loss, which is off by
    default.
    """

    def __init__(self, config: MUNITConfig, device: torch.device, style: Style):
        if config.vgg_w:
            raise ValueError(f"vgg_w must be 0 for a step in stock torch, got {config.vgg_w}")
        ours = MUNIT(config)
        self.rng = ours.rngs["styles"]
        sizes = (config.ngf, config.style_dim, config.n_downsample, config.n_res, config.mlp_dim)
        channels = {"a": config.input_nc, "b": config.output_nc}
        self.generators = {x: Generator(style, c, *sizes) for x, c in channels.items()}
        scales = (config.ndf, config.n_layers_d, config.num_scales)
        self.discriminators = {x: Discriminator(style, c, *scales) for x, c in channels.items()}
        generators = {f"gen_{x}": net for x, net in self.generators.items()}
        discriminators = {f"dis_{x}": net for x, net in self.discriminators.items()}
        super().__init__(config, device, style, ours, generators | discriminators)
        decay = config.weight_decay
        self.optimizers = {
            "gen": self.adam(*generators, weight_decay=decay),
            "dis": self.adam(*discriminators, weight_decay=decay),
        }
        for net in self.generators.values():
            self.compile(net.enc_content, net.enc_style, net.dec, net.mlp)
        self.compile(*self.discriminators.values())

    def step(self, real_a: Tensor, real_b: Tensor) -> Losses:
        real = dict(zip("ab", self.begin(real_a, real_b)))
        if not self.style.careful:
            losses = self.update_discriminators(real, self.encode(real)[0])
            return losses | self.update_generators(real, *self.encode(real))
        with self.autocast():
            content = {x: self.generators[x].enc_content(images) for x, images in real.items()}
        losses = self.update_discriminators(real, content)
        with self.autocast():
            style = {x: self.generators[x].enc_style(images) for x, images in real.items()}
        return losses | self.update_generators(real, content, style)

    def encode(self, real: ByDomain) -> tuple[ByDomain, ByDomain]:
        """(contents, styles)"""
        with self.autocast():
            codes = {x: self.generators[x].encode(images) for x, images in real.items()}
        return {x: content for x, (content, _) in codes.items()}, {x: style for x, (_, style) in codes.items()}

    def draw_styles(self, count: int) -> ByDomain:
        shape = (count, self.config.style_dim, 1, 1)
        return {x: torch.randn(shape, generator=self.rng).to(self.device) for x in "ab"}

    def update_discriminators(self, real: ByDomain, content: ByDomain) -> Losses:
        style = self.draw_styles(len(real["a"]))
        with torch.set_grad_enabled(not self.style.careful), self.autocast():
            fake = {here: self.generators[here].decode(content[there], style[here]) for here, there in BOTH_WAYS}
        with self.autocast():
            losses = {f"dis_{x}": self.loss_of_discriminator(x, fake[x].detach(), real[x]) for x in "ab"}
        self.update(self.optimizers["dis"], total(self.config.gan_w * loss for loss in losses.values()))
        return losses

    def loss_of_discriminator(self, domain: str, fake: Tensor, real: Tensor) -> Tensor:
        net = self.discriminators[domain]
        if self.style.careful:
            pairs = [scores.chunk(2) for scores in net(torch.cat([fake, real]))]
        else:
            pairs = list(zip(net(fake), net(real)))
        return total(self.gan(of_fake, False) + self.gan(of_real, True) for of_fake, of_real in pairs)

    def update_generators(self, real: ByDomain, content: ByDomain, style: ByDomain) -> Losses:
        config, drawn = self.config, self.draw_styles(len(real["a"]))
        judges = [p for net in self.discriminators.values() for p in net.parameters()]
        # The published code adds to these; the gate wants them as the discriminators' own update had them.
        gradients = [p.grad for p in judges]
        for p in judges:
            p.requires_grad_(not self.style.careful)
            p.grad = None
        losses, weighted = {}, []

        def add(name: str, weight: float, loss: Tensor) -> None:
            losses[name] = loss
            weighted.append(weight * loss)

        with self.autocast():
            for here, there in BOTH_WAYS:
                own = self.generators[here].decode(content[here], style[here])
                fake = self.generators[here].decode(content[there], drawn[here])
                content_again, style_again = self.generators[here].encode(fake)
                add(f"gen_recon_x_{here}", config.recon_x_w, self.l1(own, real[here]))
                add(f"gen_recon_s_{here}", config.recon_s_w, self.l1(style_again, drawn[here]))
                add(f"gen_recon_c_{there}", config.recon_c_w, self.l1(content_again, content[there]))
                if config.recon_x_cyc_w:
                    cycled = self.generators[there].decode(content_again, style[there])
                    add(f"gen_cycrecon_x_{there}", config.recon_x_cyc_w, self.l1(cycled, real[there]))
                scores = self.discriminators[here](fake)
                add(f"gen_adv_{here}", config.gan_w, total(self.gan(each, True) for each in scores))
        losses["G"] = total(weighted)
        self.update(self.optimizers["gen"], losses["G"])
        for p, gradient in zip(judges, gradients):
            p.requires_grad_(True)
            p.grad = gradient
        return losses


CONTESTANTS = contestants(
    MUNIT,
    StockMUNIT,
    published="the published code's operators and order of work, eager float32 NCHW: contents encoded for each update, "
    "the discriminators' through generators with a graph; AdaIN as a batch norm of samples folded into channels",
    eager="the same under bfloat16 autocast, but for the network from styles to scales and shifts, which stays in "
    "float32: with bfloat16 ones the published AdaIN raises an error on CPUs",
    careful="stock operators only, bfloat16 autocast, maps as ours: norms as batch norm of each sample, layer norm by "
    "one multiply-add, no in-place ReLU, padding and upsampling outside autocast, distances as sums, contents encoded "
    "once, no graph or gradient that nobody uses, discriminators on one batch, fused Adam",
    compiled="ReLU as a maximum",
)


def contestant(
    device: str, name: str, size: int, networks: dict[str, Any]
) -> tuple[Method | StockMethod, list[Tensor], int]:
    """What child.py measures: (model, batch, steps at a time)."""
    return prepare(CONTESTANTS[name], MUNITConfig, device, size, networks)
