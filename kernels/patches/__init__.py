"""Sampling of patch features from feature maps."""

from kernels.patches.module import PatchSampler
from kernels.patches.op import sample_patches, tap_patches

__all__ = ["PatchSampler", "sample_patches", "tap_patches"]
