"""Several processes train one model, started by torchrun: each takes its share of the batch, gradients are averaged.

Not torch's DistributedDataParallel: it prepares one backward pass per forward pass, and a step of these methods takes
several losses back one by one to keep one graph in memory at a time. `i2i.methods.overlap` is told which is the last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from i2i import multi_tensor
from i2i.errors import UsageError

TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes, if torchrun started this one. Yields the device of this one."""
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is set in the environment but {', '.join(missing)} not: start several processes with "
            "torchrun, which sets them all, or unset WORLD_SIZE"
        )
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if device.index is not None or local >= torch.cuda.device_count():
            raise UsageError(
                f"device must be cuda, without a number, and {local + 1} or more of them visible under torchrun; "
                f"got {device} with {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def first(action: Callable[[], T]) -> T:
    """What `action` returns in the first process, which alone runs it; raised in all of them if it raises UsageError
    or OSError, so that none waits for one that has ended."""
    answer: T | None = None
    error: Exception | None = None
    if rank() == 0:
        try:
            answer = action()
        except (UsageError, OSError) as raised:
            if world() == 1:
                raise
            error = raised
    found, raised_there = gather((answer, error))[0]
    if raised_there is not None:
        raise raised_there
    return found


def lost(error: Exception) -> bool:
    """Whether `error` is of a connection to another process of the run, which has ended."""
    return "WORLD_SIZE" in os.environ and (
        isinstance(error, dist.DistError)
        or bool(re.search("gloo|nccl|connection (closed|reset)|pair closure", str(error), re.I))
    )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(gradients: Sequence[Tensor]) -> None:
    """Gradients := their mean over all processes, in one transfer for each dtype."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        average([gradient for gradient in gradients if gradient.dtype == dtype])


def average(tensors: list[Tensor]) -> None:
    """Tensors of one dtype := their mean over all processes, in place."""
    if world() > 1 and tensors:
        Averaging(tensors).finish()


class Averaging:
    """Of tensors of one dtype over two or more processes: begins at once, while this process goes on computing. All
    begin theirs in one order."""

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tensors
        self.flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.work: Any = dist.all_reduce(self.flat, async_op=True)

    def finish(self) -> None:
        """Tensors := their means. On the CPU it waits for them, on a GPU the current stream does."""
        self.work.wait()
        self.flat /= world()
        means = self.flat.split([tensor.numel() for tensor in self.tensors])
        multi_tensor.copy(self.tensors, [mean.view(t.shape) for t, mean in zip(self.tensors, means, strict=True)])


@torch.no_grad()
def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Tensors := those of the first process."""
    if world() > 1:
        for tensor in tensors:
            held = tensor.contiguous()
            dist.broadcast(held, 0)
            tensor.copy_(held)


def agree(*values: int) -> tuple[int, ...]:
    """The largest of every value over all processes: what one of them has to do, all do, at the same step."""
    if world() == 1:
        return values
    largest = torch.tensor(values)  # on the CPU: no transfer waits for the device's queue
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return tuple(largest.tolist())


def gather(value: Any) -> list[Any]:
    """Every process's `value`, in order of rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Every process's `rows`, in order of rank, one after the other; as many from each."""
    if world() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)
