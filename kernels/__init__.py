"""Fused operators for image-to-image training. `kernels.backend_report()` says what runs on this machine."""

from __future__ import annotations

import warnings

from kernels import _commands as _commands  # first: it minds Ctrl-C while torch is imported
from kernels._layout import preferred_memory_format
from kernels.backends import BackendUnavailable, backend_report
from kernels.fusing import FuseReport, accelerate, fuse, unfuse
from kernels.memory import keep_freed_memory
from kernels.nce import PatchNCELoss, hdce_weight, monce_log_weight, patch_nce_loss, semantic_relation_loss
from kernels.norm import (
    AdaptiveInstanceNorm2d,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    MunitLayerNorm,
    adain,
    adaptive_instance_norm,
    instance_norm,
    munit_layer_norm,
)
from kernels.patches import PatchSampler, sample_patches, tap_patches
from kernels.resample import (
    BlurDownsample,
    BlurUpsample,
    ReflectionPad2d,
    blur_downsample,
    blur_upsample,
    reflection_pad2d,
)
from kernels.sinkhorn import sinkhorn

__version__ = "0.1.0"

__all__ = [
    "AdaptiveInstanceNorm2d",
    "BackendUnavailable",
    "BlurDownsample",
    "BlurUpsample",
    "FuseReport",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "MunitLayerNorm",
    "PatchNCELoss",
    "PatchSampler",
    "ReflectionPad2d",
    "accelerate",
    "adain",
    "adaptive_instance_norm",
    "backend_report",
    "blur_downsample",
    "blur_upsample",
    "fuse",
    "hdce_weight",
    "instance_norm",
    "keep_freed_memory",
    "monce_log_weight",
    "munit_layer_norm",
    "patch_nce_loss",
    "preferred_memory_format",
    "reflection_pad2d",
    "sample_patches",
    "semantic_relation_loss",
    "sinkhorn",
    "tap_patches",
    "unfuse",
]


def _warn_of_namesake() -> None:
    """Another distribution on PyPI is called `kernels` and installs a package of this name."""
    import importlib.metadata  # a tenth of a second, before which `_commands` has to be there

    try:
        other = importlib.metadata.version("kernels")
    except Exception:  # not there, or somebody's metadata cannot be read, which is no reason not to start
        return
    if not other:  # what an interrupted removal leaves behind has no version
        return
    warnings.warn(
        f"the distribution `kernels` {other} from PyPI is installed as well. Both provide `import kernels`, and "
        f"only one can be had in an environment: this process got {__file__}. Run `pip uninstall kernels`, or give "
        "each its own environment.",
        RuntimeWarning,
        stacklevel=3,
    )


_warn_of_namesake()
