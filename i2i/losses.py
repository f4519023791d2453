"""Losses of the published systems, in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

GAN_MODES = ("lsgan", "vanilla", "nonsaturating", "wgangp")


class GANLoss(nn.Module):
    """How far a discriminator's scores (N, 1, h, w) are from saying `real` or `fake`.

    lsgan: squared distance to 1 or 0; vanilla: cross entropy of the scores as logits; wgangp: -mean or mean (the
    gradient penalty is the caller's); each a scalar. nonsaturating: softplus, one value per sample, (N,).
    """

    def __init__(self, mode: str = "lsgan"):
        super().__init__()
        if mode not in GAN_MODES:
            raise ValueError(f"mode must be one of {', '.join(GAN_MODES)}, got {mode!r}")
        self.mode = mode

    def forward(self, scores: Tensor, target_is_real: bool) -> Tensor:
        if self.mode == "lsgan":
            return (scores - float(target_is_real)).square().mean()
        if self.mode == "wgangp":
            return -scores.mean() if target_is_real else scores.mean()
        loss = F.softplus(-scores if target_is_real else scores)  # = cross entropy with logits, for hard labels
        return loss.mean() if self.mode == "vanilla" else loss.flatten(1).mean(1)
