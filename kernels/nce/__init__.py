"""Contrastive losses on patch features."""

from kernels.nce.op import patch_nce_loss

__all__ = ["patch_nce_loss"]
