"""CycleGAN: unpaired image-to-image translation by cycle consistency (Zhu, Park, Isola, Efros; ICCV 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from i2i.config import setting
from i2i.graphs import Draws, Losses
from i2i.methods.base import Method, frozen
from i2i.methods.image_pool import ImagePool
from i2i.methods.losses import GANLoss, discriminator_loss, draw_share, gradient_penalty, l1_loss, total
from i2i.methods.translator import TranslatorConfig


@dataclass
class CycleGANConfig(TranslatorConfig):
    pool_size: int = setting(50, "past translations that a discriminator may be shown again; 0: only the newest")
    lambda_a: float = setting(10.0, "weight of the cycle A -> B -> A")
    lambda_b: float = setting(10.0, "weight of the cycle B -> A -> B")
    lambda_identity: float = setting(
        0.5, "weight of the identity loss: times lambda_b for B through G_A, times lambda_a for A through G_B"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "pool_size", "lambda_a", "lambda_b", "lambda_identity")
        alike = self.input_nc == self.output_nc or self.lambda_identity == 0
        self.require(alike, "lambda_identity", f"0 when input_nc ({self.input_nc}) and output_nc differ")


class CycleGAN(Method):
    """G_A translates A to B and D_A judges what it makes; G_B translates B to A and D_B judges."""

    name = "cyclegan"
    title = "unpaired, by translating there and back (Zhu et al., ICCV 2017)"
    Config = CycleGANConfig
    generators = ("G_A", "G_B")
    generator_losses = ("G_A", "cycle_A", "idt_A", "G_B", "cycle_B", "idt_B")

    config: CycleGANConfig

    def build(self) -> dict[str, nn.Module]:
        config, impl = self.config, self.impl
        self.gan = GANLoss(config.gan_mode)
        rng = self.rngs["step"] = torch.Generator().manual_seed(config.seed)  # draws of the pools, gradient penalty
        self.pools = {f"fake_{domain}": ImagePool(config.pool_size, rng) for domain in "BA"}
        return {
            "G_A": config.build_generator(config.input_nc, config.output_nc, impl),
            "G_B": config.build_generator(config.output_nc, config.input_nc, impl),
            "D_A": config.build_discriminator(config.output_nc, impl),
            "D_B": config.build_discriminator(config.input_nc, impl),
        }

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"G": self.adam("G_A", "G_B"), "D": self.adam("D_A", "D_B")}

    def draw(self, *batch: Tensor) -> Draws:
        """What the pools will do with the translations, and shares of the gradient penalty: of D_A, then of D_B."""
        drawn = {}
        for domain, judge, real in (("B", "D_A", batch[1]), ("A", "D_B", batch[0])):
            self.pools[f"fake_{domain}"].draw(len(real))
            if self.config.gan_mode == "wgangp":
                drawn[judge] = draw_share(len(real), self.rngs["step"])
        return Draws((), drawn)

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """One update of both generators, then one of both discriminators, on images (N, C, H, W) in [-1, 1]; the latter
        on translations from before the update. Returns the losses, detached and with their weights."""
        real_a, real_b = (images.contiguous(memory_format=self.form) for images in batch)
        self.zero_grad("G")
        fake_b, losses_a = self.backward_generators("A", real_a, real_b, draws)
        fake_a, losses_b = self.backward_generators("B", real_b, real_a, draws)
        self.update("G")

        self.zero_grad("D")
        fake_b, fake_a = self.graphs.outside(self.exchange, fake_b, fake_a)
        d_a = self.backward_discriminator("D_A", real_b, fake_b, draws.tensors.get("D_A"))
        d_b = self.backward_discriminator("D_B", real_a, fake_a, draws.tensors.get("D_B"))
        self.update("D")
        return {"D_A": d_a, **losses_a, "D_B": d_b, **losses_b}

    def exchange(self, fake_b: Tensor, fake_a: Tensor) -> tuple[Tensor, Tensor]:
        """New translations for new or old ones."""
        return self.pools["fake_B"].exchange(fake_b), self.pools["fake_A"].exchange(fake_a)

    def backward_generators(self, side: str, source: Tensor, target: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Leaves the gradients of one direction's losses in both generators: `source` through G_<side>, judged by
        D_<side> and taken back by the other generator; `target`, which should stay what it is, through G_<side>.

        Returns (the translation, the losses), detached. The published code holds six generators' graphs before its one
        backward pass. Direction by direction and loss by loss the gradients are the same, and at most three are held.
        """
        config, other = self.config, "B" if side == "A" else "A"
        second = side == "B"  # of the two directions: in it each generator has its last backward pass
        lambdas = {"A": config.lambda_a, "B": config.lambda_b}
        inputs = [source, target] if config.lambda_identity else [source]
        # One forward for both where images do not meet in it.
        if len(inputs) == 2 and config.norm != "batch" and source.shape == target.shape:
            inputs = [torch.cat(inputs)]
        with self.autocast():
            outputs = [self.networks[f"G_{side}"](images) for images in inputs]
        # Every loss goes back as far as these copies; what gathers there then goes on through the generator, once.
        halves = [half.detach().requires_grad_() for output in outputs for half in output.split(len(source))]
        fake, losses = halves[0], {}

        judge = self.networks[f"D_{side}"]
        with frozen(judge):
            with self.autocast():
                scores = judge(fake)
            losses[f"G_{side}"] = self.gan.for_generator(scores)
            self.backward(losses[f"G_{side}"])
        with self.autocast():
            back = self.networks[f"G_{other}"](fake)
        losses[f"cycle_{side}"] = lambdas[side] * l1_loss(back, source)
        self.backward(losses[f"cycle_{side}"], last=[f"G_{other}"] if second else [])
        if config.lambda_identity:
            loss = config.lambda_identity * lambdas[other] * l1_loss(halves[1], target)
            self.backward(loss)
            losses[f"idt_{side}"] = loss
        losses |= self.backward_more(side, source, fake, draws)

        gradients = [half.grad for half in halves]
        gradients = gradients if len(outputs) == len(halves) else [torch.cat(gradients)]
        self.go_back(outputs, gradients, last=[f"G_{side}"] if second else [])
        return fake.detach(), {name: loss.detach() for name, loss in losses.items()}

    def backward_more(self, side: str, source: Tensor, fake: Tensor, draws: Draws) -> Losses:
        """For methods built on this one: what else the translation `fake` of `source` should be. Leaves gradients in
        `fake`, and returns losses."""
        return {}

    def backward_discriminator(self, name: str, real: Tensor, fake: Tensor, share: Tensor | None) -> Tensor:
        """Leaves the gradient of discriminator `name`'s loss in it, and returns that loss, detached."""
        with self.autocast():
            losses = discriminator_loss(self.gan, self.networks[name], real, fake)
        if share is not None:
            losses["D_GP"] = gradient_penalty(self.networks[name], real, fake, share=share)
        loss = 0.5 * total(losses.values())
        self.backward(loss, last=[name])
        return loss.detach()

    def extra_state(self) -> dict[str, Any]:
        return {name: pool.state() for name, pool in self.pools.items()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for name, pool in self.pools.items():
            pool.load(state[name], self.device, self.form)

    def visuals(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        fake_b, fake_a = self.apply("G_A", real_a), self.apply("G_B", real_b)
        row_a = {"real_A": real_a, "fake_B": fake_b, "rec_A": self.apply("G_B", fake_b)}
        row_b = {"real_B": real_b, "fake_A": fake_a, "rec_B": self.apply("G_A", fake_a)}
        if self.config.lambda_identity:
            row_a["idt_B"], row_b["idt_A"] = self.apply("G_B", real_a), self.apply("G_A", real_b)
        return row_a | row_b
