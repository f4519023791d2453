"""Where, and by which implementation of the fused operators, a command computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from i2i.config import suggestion
from i2i.errors import UsageError
from kernels.backends import IMPLS

Network = TypeVar("Network", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """ "auto" (a GPU if there is one) or torch's name of a device. UsageError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=name).device.type == "meta":  # also finds out whether the device is there
            raise UsageError("device meta holds no values to compute with; take cpu or cuda")
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"device {name}: {reason}; without a GPU, leave it out or take cpu") from None


def cuda_index(device: torch.device) -> int:
    """The number of a CUDA device; "cuda" alone is the current one."""
    return torch.cuda.current_device() if device.index is None else device.index


def move_network(network: Network, device: torch.device, form: torch.memory_format) -> Network:
    """`network` on `device`, its weights in the memory format in which convolutions are to take and return maps."""
    options: Any = {"memory_format": form}  # which torch's annotations do not know
    return network.to(device, **options)


def format_name(form: torch.memory_format) -> str:
    """For people and files."""
    return "contiguous" if form == torch.contiguous_format else "channels last"


@contextmanager
def convolutions_by_trial(one_size: bool) -> Iterator[None]:
    """cuDNN tries its algorithms at the first call of each shape and keeps the fastest, as the published trainers have
    it. Not where images come in ever new sizes, each of which would be tried."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, one_size
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def check_impl(name: str) -> str:
    """`name`, if it is an implementation's. Whether it runs here is found out by the operators."""
    if name not in IMPLS:
        raise UsageError(f"impl must be one of {', '.join(IMPLS)}, got {name}{suggestion(name, IMPLS)}")
    return name
