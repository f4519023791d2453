"""Contrastive losses on patch features."""

from kernels.nce.module import PatchNCELoss
from kernels.nce.op import patch_nce_loss

__all__ = ["PatchNCELoss", "patch_nce_loss"]
