"""Normalisation with everything that follows it: y = act(scale * x_hat + shift) [+ residual] [reflection-padded]."""

from kernels.norm.module import AdaptiveInstanceNorm2d, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, MunitLayerNorm
from kernels.norm.op import adain, adaptive_instance_norm, instance_norm, munit_layer_norm

__all__ = [
    "AdaptiveInstanceNorm2d",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "MunitLayerNorm",
    "adain",
    "adaptive_instance_norm",
    "instance_norm",
    "munit_layer_norm",
]
