"""Memory order of tensors of shape (N, C, *spatial)."""

from __future__ import annotations

import torch

from kernels._checks import check_flag


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x of shape (N, C, *spatial) lies in memory as (N, *spatial, C), possibly with gaps: the channels of a
    position closer together than its neighbours. False where both orders are the same."""
    if x.is_contiguous() or x.shape[1] <= 1:
        return False
    step = x.stride(1)
    if step == 1:
        return True
    # some of the channels of such a map
    along = [stride for size, stride in zip(x.shape[2:], x.stride()[2:]) if size > 1]
    return 0 < step < min(along, default=0)


def dense(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """x itself or a copy of it in the wanted order."""
    if not channels_last:
        return x.contiguous()
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def preferred_memory_format(
    device: torch.device | str, dtype: torch.dtype = torch.float32, *, training: bool = True
) -> torch.memory_format:
    """The memory format of maps (N, C, H, W), and of the weights of convolutions, in which torch's convolutions take
    less time on `device`: torch.contiguous_format to train in float32 on a CPU without AVX-512, else
    torch.channels_last.

    Two cores of an AMD EPYC with AVX2 alone, one thread, milliseconds contiguous and channels last. Forward and
    backward, 3x3, float32: 256 channels at 64 x 64 573 and 854, 128 at 128 x 128 542 and 1158; bfloat16: 128 at
    64 x 64 7597 and 1698; float16: 8405 and 1508. Forward alone, float32: CUT's generator at 256 x 256 3310 and 3090.

    Args:
        device: a torch.device or the name of one.
        dtype: that convolutions compute in, inside autocast too.
        training: whether they have backward passes.

    Raises:
        TypeError, ValueError: an argument of another kind; a device that torch knows nothing of.
    """
    if not isinstance(device, (torch.device, str)):
        raise TypeError(f"device: got {device!r}, want a torch.device or the name of one")
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: got {dtype!r}, want a torch.dtype")
    check_flag("training", training)
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device: got {device!r}, want a torch.device or the name of one") from None
    slow = kind == "cpu" and not has_avx512() and training and dtype.itemsize > 2
    return torch.contiguous_format if slow else torch.channels_last
