"""OP-GAN's siamese network (Xie, Chen, Li, Shen, Ma, Zheng; ECCV 2020). There is no published code.

Fixed by the paper: two patches through one encoder, each to a content map and a domain map of 11 x 11 x 512; content
through a 1 x 1 convolution and interpolated to the patch's size as an attention map; both domain maps together, 11 x 11
x 1024, to three classes (both patches from one domain, both from the other, one of each).

Decided here: everything between those. Three 3 x 3 convolutions of stride 2 bring the 85 pixels of a third of 256 to
11; the attention map is a sigmoid. No norm at all: instance norm would take from each patch the brightness and contrast
by which domains differ, batch norm has nothing to work with at one pair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from i2i.networks.keys import Recognised, Settings, State

CLASSES = 3  # both from domain A, both from domain B, one of each


def conv_lrelu(inner: int, outer: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2)
    return [conv, nn.LeakyReLU(0.2, inplace=True)]


class PlainResidualBlock(nn.Module):
    """x + conv(lrelu(conv(lrelu(x)))), zero-padded, shape kept."""

    def __init__(self, channels: int):
        super().__init__()
        # Not in place at the start: the sum needs x as it came.
        self.block = nn.Sequential(
            nn.LeakyReLU(0.2),
            *conv_lrelu(channels, channels, 3),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class SiameseNetwork(nn.Module):
    """Patches (N, input_nc, h, w) -> what registers their content and what tells their domains apart."""

    def __init__(self, input_nc: int = 3, width: int = 64):
        super().__init__()
        wide = 8 * width
        self.encoder = nn.Sequential(
            *conv_lrelu(input_nc, width, 7),
            *(layer for inner in (width, 2 * width, 4 * width) for layer in conv_lrelu(inner, 2 * inner, 3, stride=2)),
            PlainResidualBlock(wide),
            PlainResidualBlock(wide),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.content = nn.Conv2d(wide, wide, 3, padding=1)
        self.domain = nn.Conv2d(wide, wide, 3, padding=1)
        self.attend = nn.Conv2d(wide, 1, 1)
        self.classify = nn.Sequential(
            *conv_lrelu(2 * wide, wide, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(wide, CLASSES),
        )

    def encode(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(content, domain), both (N, 8 * width, h / 8, w / 8), rounded up."""
        features = self.encoder(patches)
        return self.content(features), self.domain(features)

    def attention(self, content: Tensor, size: torch.Size) -> Tensor:
        """`content` -> (N, 1, *size) in (0, 1)."""
        return F.interpolate(self.attend(content).sigmoid(), size, mode="bilinear", align_corners=False)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of patches, both (N, input_nc, h, w) -> their attention maps (N, 1, h, w) each, class logits (N, 3)."""
        content, domain = self.encode(torch.cat([first, second]))
        one, two = self.attention(content, first.shape[2:]).chunk(2)
        return one, two, self.classify(torch.cat(domain.chunk(2), dim=1))


def siamese_network(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    if not {"encoder.0.weight", "attend.weight", "classify.0.weight"} <= set(state):
        return None
    width, input_nc = state["encoder.0.weight"].shape[:2]
    return SiameseNetwork(input_nc, width), f"Siamese network, width {width}, {input_nc} channels (OP-GAN)"
