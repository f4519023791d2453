"""What the launchers of the triton kernels share. Torch alone: triton itself is not needed here."""

from __future__ import annotations

import contextlib
import functools

import torch

ASSUMED_SMS = 132  # of an H100 or H200, where there is no device to ask


def pow2(n: int) -> int:
    """The power of two at or above n."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@functools.cache
def _sms(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def sms_of(x: torch.Tensor) -> int:
    """Multiprocessors of x's device."""
    return _sms(x.get_device()) if x.is_cuda else ASSUMED_SMS


def on(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes x's device current where it is not: triton launches on the current device."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
