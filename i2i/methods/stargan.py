"""StarGAN: one generator for all of many domains (Choi, Choi, Kim, Ha, Kim, Choo; CVPR 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i.config import Config, setting
from i2i.data.labels import LabelSpace
from i2i.graphs import Draws, Losses
from i2i.methods.alternating import Alternating
from i2i.methods.base import frozen
from i2i.methods.losses import draw_share, gradient_penalty, l1_loss, total
from i2i.networks.stargan import StarGANDiscriminator, StarGANGenerator
from kernels._dtypes import wide

LR_UPDATE_STEP = 1000  # iterations between changes of the learning rate


@dataclass
class StarGANConfig(Config):
    """The published names and defaults (options of its `main.py`), but: steps is num_iters, crop_size image_size and
    center_crop celeba_crop_size or rafd_crop_size there."""

    data: tuple[str, ...] = setting(
        (), "a folder with pictures and an attribute file, or these two, or a folder of class folders; empty: samples"
    )
    dataset_mode: str = setting("attributes", "attributes: labelled images, the only choice")
    center_crop: int = setting(
        178, "pixels: side of the square cut from the middle of a picture and scaled to crop_size; 0: the largest"
    )
    crop_size: int = 128
    batch_size: int = 16
    test_images: int = setting(1999, "images of an attribute file that are held out of training")
    label_kind: str = setting(
        "attributes", "attributes: any of them at once, from a file like CelebA's; classes: one each, from folders"
    )
    selected_attrs: tuple[str, ...] = setting(
        ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"), "attributes to change, or the class folders"
    )
    exclusive: tuple[str, ...] = setting(
        ("Black_Hair+Blond_Hair+Brown_Hair+Gray_Hair",), "groups A+B+C of attributes, of which an image has at most one"
    )
    g_conv_dim: int = setting(64, "channels of the generator's first layer")
    d_conv_dim: int = setting(64, "channels of the discriminator's first layer")
    g_repeat_num: int = setting(6, "residual blocks of the generator")
    d_repeat_num: int = setting(6, "strided convolutions of the discriminator")
    lambda_cls: float = setting(1.0, "weight of the classification loss")
    lambda_rec: float = setting(10.0, "weight of the reconstruction loss")
    lambda_gp: float = setting(10.0, "weight of the gradient penalty")
    n_critic: int = setting(5, "updates of D for one of G")
    lr: float = 1e-4
    lr_decay: str = setting(
        "upstream", "upstream: the schedule behind the published figures; linear: what the paper says"
    )
    num_iters_decay: int = setting(100_000, "iterations at the end over which the learning rate falls")
    steps: int = 200_000
    lr_policy: str = setting("linear", "left alone: lr_decay and num_iters_decay take its place")
    n_epochs: int = setting(1_000_000, "epochs at most; so many that steps ends the run first")
    keep_every: int = setting(
        50,
        "epochs between weight files that later ones do not replace; a small set goes through thousands of epochs in "
        "200,000 steps",
    )

    DATASET_MODES: ClassVar[tuple[str, ...]] = ("attributes",)
    SAMPLE: ClassVar[dict[str, Any]] = Config.SAMPLE | {
        "crop_size": 32,
        "selected_attrs": ("Red", "Green", "Blue", "Dark"),
        "exclusive": ("Red+Green+Blue",),
        "g_conv_dim": 8,
        "d_conv_dim": 8,
        "g_repeat_num": 2,
        "d_repeat_num": 4,
        "n_critic": 2,
        "lr": 1e-3,
        "lr_decay": "linear",
        "steps": 1200,
        "num_iters_decay": 600,
        "n_epochs": 1_000_000,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "center_crop", "lambda_cls", "lambda_rec", "lambda_gp", "num_iters_decay")
        self.at_least(1, "g_conv_dim", "d_conv_dim", "d_repeat_num", "n_critic", "steps", "test_images")
        self.at_least(0, "g_repeat_num")
        self.require(self.crop_size % 4 == 0, "crop_size", "a multiple of 4")
        least = 2**self.d_repeat_num
        self.require(self.crop_size >= least, "crop_size", f"at least {least} for d_repeat_num={self.d_repeat_num}")
        self.require(self.input_nc == self.output_nc, "output_nc", f"as input_nc ({self.input_nc}): images go around")
        self.require(self.lr_policy == "linear", "lr_policy", "left alone: lr_decay and num_iters_decay take its place")
        self.one_of("lr_decay", ("upstream", "linear"))
        self.one_of("label_kind", ("attributes", "classes"))
        self.label_space()

    def label_space(self) -> LabelSpace:
        return LabelSpace(self.selected_attrs, self.exclusive, self.label_kind == "classes")


class StarGAN(Alternating):
    """G translates an image to the domain that a label names; D tells real from translated and reads the label."""

    name = "stargan"
    title = "many domains by label, one generator (Choi et al., CVPR 2018)"
    Config = StarGANConfig
    generator_losses = ("G_fake", "G_cls", "G_rec")
    losses = ("D_real", "D_fake", "D_cls", "D_gp", *generator_losses)

    config: StarGANConfig
    G: StarGANGenerator
    D: StarGANDiscriminator

    def build(self) -> dict[str, nn.Module]:
        """With torch's own initialisation, as published."""
        config = self.config
        self.labels = config.label_space()
        self.weights = {
            "D_cls": config.lambda_cls,
            "D_gp": config.lambda_gp,
            "G_cls": config.lambda_cls,
            "G_rec": config.lambda_rec,
        }
        for name in ("targets", "penalty"):
            self.rngs[name] = torch.Generator().manual_seed(config.seed)
        return self.build_networks(len(self.labels.names))

    def build_networks(self, c_dim: int) -> dict[str, nn.Module]:
        config, nc = self.config, self.config.input_nc
        return {
            "G": StarGANGenerator(config.g_conv_dim, c_dim, config.g_repeat_num, image_nc=nc, impl=self.impl),
            "D": StarGANDiscriminator(config.crop_size, config.d_conv_dim, c_dim, config.d_repeat_num, image_nc=nc),
        }

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: self.adam(name) for name in self.networks}

    def draw(self, *batch: Tensor) -> Draws:
        """Whether it is G's turn; the labels to translate to; shares of the gradient penalty."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * self.lr_factor(self.iteration)
        turn = "D and G" if (self.iteration + 1) % self.config.n_critic == 0 else "D"
        count = len(batch[0])
        return Draws((turn,), {"targets": self.draw_targets(count), "share": draw_share(count, self.rngs["penalty"])})

    def draw_targets(self, count: int) -> Tensor:
        """For each of `count` images, the one whose label is its target: the labels of the batch, in another order."""
        return torch.randperm(count, generator=self.rngs["targets"])

    def targets(self, labels: Tensor, drawn: Tensor) -> Tensor:
        """Labels to translate to, of what `draw_targets` has drawn."""
        return labels[drawn]

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """One update of D, and at its turn one of G, on images (N, C, H, W) in [-1, 1] and their labels
        (N, len(selected_attrs)) of 0 and 1."""
        images, labels = batch
        updating = "D and G" in draws.variant
        real = images.contiguous(memory_format=self.form)
        targets = self.targets(labels, draws.tensors["targets"])
        # The published code translates once for D and once more for G, which has not changed in between.
        with torch.set_grad_enabled(updating), self.autocast():
            fake = self.G(real, targets)
        losses = self.update_discriminator(real, labels, fake.detach(), draws)
        if updating:
            losses |= self.update_generator(real, labels, fake, targets, draws)
        return {name: loss.detach() for name, loss in losses.items()}

    def lr_factor(self, done: int) -> float:
        """Of the learning rate, after `done` iterations. The published code means to let it fall to 0, but takes one
        step where a thousand are due: from 1e-4 it falls to 9.99e-5."""
        config = self.config
        start = max(0, config.steps - config.num_iters_decay)
        if done <= start:
            return 1.0
        if config.lr_decay == "linear":
            return (config.steps - done) / (config.steps - start)
        return 1 - (done // LR_UPDATE_STEP - start // LR_UPDATE_STEP) / config.num_iters_decay

    def update_discriminator(self, real: Tensor, labels: Tensor, fake: Tensor, draws: Draws) -> Losses:
        """Of both kinds of images at once, since D has no norm: of its 45 million weights, most are used at four places
        of an image, and a gradient of them all costs as much as its convolution. Then of the penalty."""
        self.zero_grad("D")
        features, scores, logits = (both.chunk(2) for both in self.judge(torch.cat([real, fake])))
        losses = {"D_real": -scores[0].mean(), "D_fake": scores[1].mean()}
        losses = self.take_back(losses | self.label_losses(features[0], logits[0], labels, draws))
        penalty = gradient_penalty(lambda x: self.D(x)[0], real, fake, weight=1.0, share=draws.tensors["share"])
        losses |= self.take_back({"D_gp": penalty}, last=["D"])
        self.update("D")
        return losses

    def update_generator(self, real: Tensor, labels: Tensor, fake: Tensor, targets: Tensor, draws: Draws) -> Losses:
        """Losses go back as far as a copy of the translation, and from there once through the generator."""
        self.zero_grad("G")
        copy = fake.detach().requires_grad_()
        with frozen(self.D):
            losses = self.take_back(self.fake_losses(copy, targets))
        losses |= self.take_back(self.reconstruction_losses(real, labels, copy, draws))
        self.go_back([fake], [copy.grad], last=["G"])
        self.update("G")
        return losses

    def take_back(self, losses: Losses, last: Sequence[str] = ()) -> Losses:
        """Gradients of the weighted sum. Returns `losses`. `last`: see `backward`."""
        if losses:
            self.backward(total(self.weights.get(name, 1.0) * loss for name, loss in losses.items()), last=last)
        return losses

    def judge(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D's (features, scores, label logits)."""
        with self.autocast():
            features = self.D.features(images)
            scores, logits = self.D.heads(features)
        return features, wide(scores), wide(logits)

    def label_losses(self, features: Tensor, logits: Tensor, labels: Tensor, draws: Draws) -> Losses:
        """What D says of real images' labels."""
        return {"D_cls": self.classification(logits, labels)}

    def fake_losses(self, fake: Tensor, targets: Tensor) -> Losses:
        _, scores, logits = self.judge(fake)
        return {"G_fake": -scores.mean(), "G_cls": self.classification(logits, targets)}

    def reconstruction_losses(self, real: Tensor, labels: Tensor, fake: Tensor, draws: Draws) -> Losses:
        with self.autocast():
            around = self.G(fake, labels)
        return {"G_rec": l1_loss(around, real)}

    def classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy: of the attributes one by one, summed over them, mean over images; of the classes, mean."""
        if self.labels.classes:
            return F.cross_entropy(logits, labels.argmax(1))
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum") / len(logits)

    @torch.no_grad()
    def translate(self, images: Tensor, labels: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] and the labels (N, len(selected_attrs)) wanted -> the images, so changed."""
        net = self.translator("G").eval()
        with self.autocast():
            output = net(images.to(self.device, memory_format=self.form), labels.to(self.device))
        net.train()
        return output.float()

    def visuals(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Each attribute turned over, or put in the place of those that exclude it."""
        edits = self.labels.edits(labels)
        return {"real": images} | {name: self.translate(images, edited) for name, edited in edits.items()}
