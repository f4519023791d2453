"""Contrastive losses on patch features, and the weights of their negatives."""

from kernels.nce.module import PatchNCELoss
from kernels.nce.op import patch_nce_loss
from kernels.nce.weights import hdce_weight, monce_log_weight, semantic_relation_loss

__all__ = ["PatchNCELoss", "hdce_weight", "monce_log_weight", "patch_nce_loss", "semantic_relation_loss"]
