"""`accelerate`: everything that pays in somebody else's trainer, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kernels._checks import check_flag
from kernels._layout import has_avx512
from kernels.fusing import memory_format
from kernels.fusing import precision as precisions
from kernels.fusing.model import check_model, fuse, modules_of
from kernels.memory import keep_freed_memory


def accelerate(
    model: nn.Module, precision: str | torch.dtype | None = None, channels_last: bool | None = None
) -> nn.Module:
    """`kernels.fuse`, and what makes the most of it, in place: for trainers that know nothing of this library.

    * `fuse(model)`.
    * Weights of 2-D and 3-D convolutions lie in channels-last order, so that all maps between them do: on GPUs, on
      processors with AVX-512, and with `precision`. On others torch's convolutions are slower in that order (see
      `kernels.preferred_memory_format`), and where one of torch's own instance or group norms is left, it computes
      wrong numbers for some such maps on any processor; there weights stay contiguous, and the report says why.
    * With `precision="bfloat16"`, every call of `model` runs under torch.autocast; what it returns in 16 bits comes
      back in float32, unless the caller is inside autocast himself. Parameters, gradients and optimiser stay float32,
      and no gradient scaler is needed. Only calls of the model count: for a network whose parts are called one by one,
      accelerate the parts.
    * On a CPU, `kernels.keep_freed_memory`, for the whole process.

    A second call changes only what it asks for anew: another precision, modules that came since. The last call decides.
    `kernels.unfuse(model)` undoes it all but the last point.

    Args:
        model: any module, DataParallel and DistributedDataParallel included (what is inside is accelerated); best
            before the optimiser is built, before torch.compile.
        precision: None, which leaves the trainer's own, or "bfloat16".
        channels_last: True or False decides it for every device.

    Returns:
        `model`, with a `FuseReport` as its attribute `fuse_report`.

    Raises:
        TypeError: `model` is no nn.Module, or a ScriptModule; `channels_last` is neither None nor a bool.
        ValueError: another precision; a class that cannot be derived from, for a precision; `channels_last=True` where
            it would give wrong numbers (the model is fused then, its weights are contiguous).
    """
    check_model(model)
    if channels_last is not None:
        check_flag("channels_last", channels_last)
    if not isinstance(precision, (str, torch.dtype, type(None))) or precision not in precisions.PRECISIONS:
        text = f"precision: got {precision!r}, want None or 'bfloat16'"
        if precision in ("float16", torch.float16):
            text += ": float16 needs a gradient scaler in the trainer's step, beside torch.autocast"
        raise ValueError(text)
    dtype = precisions.PRECISIONS[precision]
    inner = _inner(model)
    why = precisions.why_not(inner, dtype)
    if why:
        raise ValueError(f"precision: got {precision!r} for a {type(inner).__name__}: {why}; use torch.autocast")
    model = fuse(model)
    notes: list[str] = []
    wrong = memory_format.why_wrong(model, modules_of(model))
    if wrong and channels_last:
        raise ValueError(f"channels_last: got True, want None or False: {wrong}")
    why = wrong or ("" if channels_last else memory_format.why_slower(model, dtype))
    if channels_last is False or why:
        for module in model.modules():  # an earlier call may have done it
            memory_format.give_back(module)
        notes += [f"weights stay contiguous: {why}"] if channels_last is None else []
    else:
        notes.append(f"channels last: {memory_format.to_channels_last(model)} weights of convolutions")
    precisions.set_precision(inner, dtype)
    if dtype is not None:
        notes.append(f"every call runs under torch.autocast in {str(dtype).removeprefix('torch.')}")
    on_cpu = memory_format.on_cpu(model)
    if on_cpu and dtype is not None and not has_avx512():
        # measured on a processor with AVX2: a Conv3d of 32 channels at 32^3, 0.2 s in float32 and 9.6 s in bfloat16
        notes.append("this processor has no AVX-512: torch's convolutions in bfloat16 are slower than in float32 here")
    if on_cpu and keep_freed_memory():
        notes.append("freed memory is kept for the next tensor of its size")
    vars(model)["fuse_report"].notes = notes
    return model


def _inner(model: Any) -> nn.Module:
    """What a wrapper calls: the module whose forward the precision is for."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, torch._dynamo.OptimizedModule)):
        model = model._orig_mod if isinstance(model, torch._dynamo.OptimizedModule) else model.module
    return model
