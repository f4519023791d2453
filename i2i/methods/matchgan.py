"""MatchGAN: StarGAN from few labels (Sun, Bhattarai, Kim; ACCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i.config import setting
from i2i.data.labelled import BATCH, GROUP
from i2i.graphs import Draws, Losses
from i2i.methods.stargan import StarGAN, StarGANConfig
from i2i.networks.stargan import MatchGANDiscriminator, MatchGANGenerator
from kernels._dtypes import wide

# Pairs of a batch sorted by class, from eight triples of an anchor, an image of its class and one of another class.
SAME = [(0, 1), (4, 5), (8, 9), (12, 13), (2, 1), (6, 5), (10, 9), (14, 13)]
DIFFERENT = [(2, 15), (6, 3), (10, 7), (14, 11), (0, 11), (4, 15), (8, 3), (12, 7)]
LABELLED = "labelled"  # of a step's variant
FIRST, SECOND = map(list, zip(*SAME, *DIFFERENT))


@dataclass
class MatchGANConfig(StarGANConfig):
    dataset_mode: str = setting("few_labels", "few_labels: images of which some are labelled, the only choice")
    exclusive: tuple[str, ...] = ("Black_Hair+Blond_Hair+Brown_Hair",)
    labelled_percentage: float = setting(100.0, "percent of the training images whose labels are used")
    lambda_match: float = setting(0.5, "weight of the loss of matching pairs")

    DATASET_MODES: ClassVar[tuple[str, ...]] = ("few_labels",)
    SAMPLE: ClassVar[dict[str, Any]] = StarGANConfig.SAMPLE | {"labelled_percentage": 10.0, "n_critic": 3}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(0, "lambda_match")
        self.require(0 < self.labelled_percentage <= 100, "labelled_percentage", "above 0 and at most 100")
        self.require(self.batch_size == BATCH, "batch_size", f"{BATCH}, {GROUP} classes of {GROUP} images")
        # G's turn and batches with labels would never meet, and with them its reconstruction loss.
        meets = self.n_critic % 2 == 1 or self.labelled_percentage == 100
        self.require(meets, "n_critic", "odd, for every other batch has labels")
        classes = len(self.label_space().vectors)
        self.require(classes >= GROUP, "selected_attrs", f"names with {GROUP} or more labels that make sense")


class MatchGAN(StarGAN):
    """StarGAN whose D also says of two images whether they show the same label. It learns so from labelled real images
    and from translated ones, whose label is the one asked for: most real images need none.

    Batches alternate: one labelled, its images sorted by class; one without labels (values that are not numbers), for
    which D has no classification and no match loss and G no reconstruction, as the published code has it.
    """

    name = "matchgan"
    title = "StarGAN from few labels, by matching pairs (Sun et al., ACCV 2020)"
    Config = MatchGANConfig
    generator_losses = (*StarGAN.generator_losses, "G_match")
    losses = (*StarGAN.losses, "D_match", "G_match")

    config: MatchGANConfig
    G: MatchGANGenerator
    D: MatchGANDiscriminator

    def build_networks(self, c_dim: int) -> dict[str, nn.Module]:
        config, nc = self.config, self.config.input_nc
        self.pairs = torch.tensor([FIRST, SECOND], device=self.device)
        self.weights |= {"D_match": config.lambda_match, "G_match": config.lambda_match}
        return {
            "G": MatchGANGenerator(config.g_conv_dim, c_dim, config.g_repeat_num, image_nc=nc, impl=self.impl),
            "D": MatchGANDiscriminator(config.crop_size, config.d_conv_dim, c_dim, config.d_repeat_num, image_nc=nc),
        }

    @property
    def labelled(self) -> bool:
        """Whether this iteration's batch has labels."""
        return self.config.labelled_percentage == 100 or self.iteration % 2 == 0

    def zero_grad(self, *names: str) -> None:
        """Two heads of D have no loss without labels. As published Adam moves them on by the momentum that they have,
        so they begin with gradients of 0 and not with none."""
        super().zero_grad(*names)
        for head in (self.D.conv2, self.D.conv3) if "D" in names else ():
            head.weight.grad = torch.zeros_like(head.weight)

    def draw(self, *batch: Tensor) -> Draws:
        """As StarGAN, and whether the batch has labels."""
        variant, drawn = super().draw(*batch)
        return Draws((*variant, LABELLED) if self.labelled else variant, drawn)

    def draw_targets(self, count: int) -> Tensor:
        """Four classes a, b, c, d, drawn without replacement, as a, b, c, d, a, b, c, d, ...: every class of a labelled
        batch is translated to each of them."""
        table = self.labels.table()
        classes = table[torch.randperm(len(table), generator=self.rngs["targets"])[:GROUP]]
        return classes.repeat(GROUP, 1)

    def targets(self, labels: Tensor, drawn: Tensor) -> Tensor:
        return drawn.to(labels)

    def label_losses(self, features: Tensor, logits: Tensor, labels: Tensor, draws: Draws) -> Losses:
        if LABELLED not in draws.variant:
            return {}
        return {"D_cls": self.classification(logits, labels), "D_match": self.match(features)}

    def fake_losses(self, fake: Tensor, targets: Tensor) -> Losses:
        features, scores, logits = self.judge(fake)
        by_target = features.unflatten(0, (GROUP, GROUP)).transpose(0, 1).flatten(0, 1)
        return {
            "G_fake": -scores.mean(),
            "G_cls": self.classification(logits, targets),
            "G_match": self.match(by_target),
        }

    def reconstruction_losses(self, real: Tensor, labels: Tensor, fake: Tensor, draws: Draws) -> Losses:
        return super().reconstruction_losses(real, labels, fake, draws) if LABELLED in draws.variant else {}

    def match(self, features: Tensor) -> Tensor:
        """Cross entropy of the pairs of a batch sorted by class, mean. The features are those that the other losses
        have computed already; the published code computes them again, of both images of each pair."""
        with self.autocast():
            logits = self.D.match(features, *self.pairs)
        same = torch.arange(len(FIRST), device=logits.device) < len(SAME)
        return F.cross_entropy(wide(logits), same.long())
