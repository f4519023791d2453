"""Losses of the published systems, in plain torch."""

from __future__ import annotations

import torch
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


def patch_nce_loss(q: Tensor, k: Tensor, temperature: float = 0.07, all_negatives: bool = False) -> Tensor:
    """PatchNCE of CUT: rows q and k of unit length, (B, P, C) -> (B * P,).

    Row i of q is to be told apart as nearest to row i of k among the other rows of k: those of the same image, or with
    `all_negatives` of the whole batch. No gradient reaches k.
    """
    k = k.detach()
    positive = (q * k).sum(-1, keepdim=True).reshape(-1, 1)
    if all_negatives:
        q, k = q.reshape(1, -1, q.shape[-1]), k.reshape(1, -1, k.shape[-1])
    negatives = q @ k.transpose(1, 2)
    itself = torch.eye(q.shape[1], dtype=torch.bool, device=q.device)
    # -10 and not -inf, as published: exp(-10 / T) is 0 in float32 at T = 0.07, but not at every temperature.
    negatives = negatives.masked_fill(itself, -10.0).reshape(-1, q.shape[1])
    logits = torch.cat([positive, negatives], 1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none")
