"""Antialiased x1/2 and x2, and reflection padding: the linear maps between feature maps of two sizes."""

from kernels.resample.module import BlurDownsample, BlurUpsample, ReflectionPad2d
from kernels.resample.op import blur_downsample, blur_upsample, reflection_pad2d

__all__ = [
    "BlurDownsample",
    "BlurUpsample",
    "ReflectionPad2d",
    "blur_downsample",
    "blur_upsample",
    "reflection_pad2d",
]
