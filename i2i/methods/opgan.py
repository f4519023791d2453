"""OP-GAN: CycleGAN whose translations keep their objects (Xie, Chen, Li, Shen, Ma, Zheng; ECCV 2020).

There is no published code. Fixed by the paper: CycleGAN and one siamese network S; source and translation each cut into
a grid of 3 x 3 patches; pairs of these 18, both from the source (D1), both from the translation (D2), one of each at
one place (C1) or at two (C2); for C1 the mean squared difference of the two attention maps (equation 5); for every pair
the cross entropy of {D1, D2, C1 or C2} (equation 6); both added to the loss of the generators with weight beta = 1
beside alpha = 10 of the cycles (equation 7); no identity loss; S and the generators updated in turn.

Decided here, each a field of the configuration or a line of code below:

* Grid: a third of the side, rounded down; the last rows and columns are left out.
* pair_sampling: of 18 patches, two at random are at one place in 6 % of pairs, so the kind of a pair is drawn first.
* n_pairs: 4 for each image and direction.
* Classes by what a patch looks like: both as A, both as B, one of each. So S serves both directions; their losses are
  averaged.
* Losses are means over pairs (a pair that is not C1 counts as 0 in the first), where the paper has sums.
* Generators minimise S's losses as S itself does: equation 7 read literally; the paper's "in turn" is about whose
  weights are fixed.
* S is updated by the pairs that the generators were, from before their update, as CycleGAN's discriminators are: one
  forward of S serves both.
* register_siamese: a constant map has no registration loss, and S finds that. With equation 7 read literally, the
  default, the variance of the maps ("S_variance" among the losses) fell from 2e-2 to 3e-6 in 60 steps on the sample
  photographs; with register_siamese=false, where S learns from the domain loss alone, it rose to 8e-2.
* normalize_attention: of maps to a mean of 1, before they are compared. It does not prevent that collapse (4e-6).
* attention_on: the maps, as equation 5 prints it, or the pixels they let through.
* S: see i2i/networks/opgan.py; Adam with the discriminators' settings. All else: CycleGAN's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i.config import setting
from i2i.graphs import Draws, Losses
from i2i.methods.cyclegan import CycleGAN, CycleGANConfig
from i2i.networks.init import init_weights
from i2i.networks.opgan import SiameseNetwork
from kernels._dtypes import wide

GRID = 3  # patches across and down
PLACES = GRID * GRID
SHARED_LOSSES = ("content", "domain")  # of S and the generators


@dataclass
class OPGANConfig(CycleGANConfig):
    lambda_identity: float = 0.0
    lambda_s: float = setting(1.0, "weight of the losses of the siamese network S (the paper's beta)")
    n_pairs: int = setting(4, "pairs of patches for each image and direction")
    pair_sampling: str = setting(
        "scenario", "scenario: the four kinds of pairs equally often; uniform: any two of the 18 patches"
    )
    attention_on: str = setting(
        "maps", "what registration compares: the attention maps, or the pixels they let through"
    )
    normalize_attention: bool = setting(False, "scale attention maps to a mean of 1 before they are compared")
    register_siamese: bool = setting(True, "let registration train S, too, and not the generators alone")
    nsf: int = setting(64, "channels of S's first layer")

    # Without identity loss a translation may as well be a negative: nothing in the sample tells (11.5 dB, from 11.9).
    SAMPLE: ClassVar[dict[str, Any]] = CycleGANConfig.SAMPLE | {"nsf": 16, "lambda_identity": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "n_pairs", "nsf")
        self.at_least(0, "lambda_s")
        self.one_of("pair_sampling", ("scenario", "uniform"))
        self.one_of("attention_on", ("maps", "pixels"))
        self.require(self.input_nc == self.output_nc, "output_nc", f"as input_nc ({self.input_nc}): S sees both")


class OPGAN(CycleGAN):
    """CycleGAN and S, which is shown patches of sources and of their translations."""

    name = "opgan"
    title = "CycleGAN that keeps objects, by registering patches (Xie et al., ECCV 2020; no published code)"
    Config = OPGANConfig
    generator_losses = (*CycleGAN.generator_losses, *(f"S_{loss}_{side}" for side in "AB" for loss in SHARED_LOSSES))

    config: OPGANConfig
    S: SiameseNetwork

    def build(self) -> dict[str, nn.Module]:
        self.rngs["pairs"] = torch.Generator().manual_seed(self.config.seed)
        networks = super().build()
        # Kaiming: without norms, the spread of CycleGAN's initialisation would shrink from layer to layer.
        siamese = SiameseNetwork(self.config.input_nc, self.config.nsf)
        return networks | {"S": init_weights(siamese, "kaiming")}

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return super().build_optimizers() | {"S": self.adam("S")}

    def draw(self, *batch: Tensor) -> Draws:
        """What CycleGAN draws, and the pairs of patches of each direction."""
        variant, drawn = super().draw(*batch)
        count = self.config.n_pairs
        images = torch.arange(len(batch[0])).repeat_interleave(count)
        for side, source in zip("AB", batch):
            pairs = draw_pairs(len(source) * count, self.config.pair_sampling, self.rngs["pairs"])
            at_one_place = (pairs[0] % PLACES == pairs[1] % PLACES).float()
            drawn[side] = Pairs(images, pairs[0], pairs[1], at_one_place, pair_classes(pairs, side))
        return Draws(variant, drawn)

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """As CycleGAN's, and one update of S."""
        self.zero_grad("S")
        losses = super().compute(batch, draws)
        self.update("S")
        return losses

    def backward_more(self, side: str, source: Tensor, fake: Tensor, draws: Draws) -> Losses:
        """Registration and domain loss of one direction; gradients in S and `fake`."""
        config, pairs = self.config, draws.tensors[side]
        cells = torch.cat([cut(source), cut(fake)], dim=1)
        first, second = (
            cells[pairs.images, numbers].contiguous(memory_format=self.form) for numbers in (pairs.first, pairs.second)
        )
        with self.autocast():
            *maps, logits = self.S(first, second)
        one, two = map(wide, maps)
        variance = torch.cat([one, two]).detach().var((1, 2, 3)).mean()
        if config.normalize_attention:
            one, two = (each / each.mean((2, 3), keepdim=True) for each in (one, two))
        if config.attention_on == "pixels":
            one, two = one * first, two * second
        content = ((one - two).square().mean((1, 2, 3)) * pairs.at_one_place.to(one)).mean()
        domain = F.cross_entropy(wide(logits), pairs.classes)

        weight = 0.5 * config.lambda_s  # of two directions
        last = ["S"] if side == "B" else []
        if config.register_siamese:
            self.backward(weight * (content + domain), last=last)
        else:
            self.scaler.scale(weight * content).backward(inputs=[fake], retain_graph=True)
            self.backward(weight * domain, last=last)
        return {f"S_content_{side}": content, f"S_domain_{side}": domain, f"S_variance_{side}": variance}


class Pairs(NamedTuple):
    """Pairs of patches, each field (count,): the images they are of, the numbers of both patches (see `draw_pairs`), 1
    where these are at one place and 0 elsewhere, and `pair_classes`."""

    images: Tensor
    first: Tensor
    second: Tensor
    at_one_place: Tensor
    classes: Tensor


def cut(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 9, C, H // 3, W // 3), places row by row; what is left over at the end is left out."""
    height, width = (side // GRID for side in images.shape[2:])
    grid = images[..., : GRID * height, : GRID * width].unflatten(3, (GRID, width)).unflatten(2, (GRID, height))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def draw_pairs(count: int, sampling: str, generator: torch.Generator) -> Tensor:
    """(2, count) numbers of patches: 0 to 8 are places of the source, 9 to 17 the same of the translation."""

    def draw(least: int, below: int) -> Tensor:
        return torch.randint(least, below, (count,), generator=generator)

    if sampling == "uniform":
        first = draw(0, 2 * PLACES)
        return torch.stack([first, (first + draw(1, 2 * PLACES)) % (2 * PLACES)])
    kind, place = draw(0, 4), draw(0, PLACES)  # D1, D2, C1, C2
    elsewhere = (place + draw(1, PLACES)) % PLACES
    first = place + PLACES * (kind == 1)
    second = torch.where(kind == 2, place, elsewhere) + PLACES * (kind > 0)
    return torch.stack([first, second])


def pair_classes(pairs: Tensor, side: str) -> Tensor:
    """Classes of pairs, (count,): 0 where both patches look as of domain A, 1 both as of B, 2 one of each. `side`:
    the domain of the source; its translation looks as the other."""
    like_b = (pairs >= PLACES) == (side == "A")
    return torch.tensor([0, 2, 1])[like_b.sum(0)]
