"""Tensors to addresses and plans for the CUDA kernels (csrc/cuda/sinkhorn). No autograd, no checks of arguments.

A plan holds the launches of all calls with one size, dtype and number of iterations. Launches go to the current stream,
nothing is copied to the host and all memory comes from torch: safe inside CUDA graphs once each plan has run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from kernels import _cuda
from kernels._cuda import DTYPES, Device, Grid, Launch
from kernels._native import pointer
from kernels.sinkhorn.spec import new_potentials

Tensor = torch.Tensor

THREADS = 512  # of a block of `iterate` and `sweep` at most, as in csrc/cuda/sinkhorn/problem.cuh
TILE = (16, 32)  # of a block of `gradient`: backward.cuh
TILE_THREADS = 128
STATIC_SHARED = 6 * 1024  # bytes that the kernels themselves take, and 1 KiB that the system does

LEAST_ROWS = 16  # of a block: one for each warp. More blocks would only wait for one another
HELD = True  # False: no problem is held in shared memory (tests)


class Plan(NamedTuple):
    launches: tuple[Launch, ...]
    held: bool  # whether forward can do without memory for the potentials


class Cut(NamedTuple):
    """How a problem is cut into the blocks of its cluster."""

    cluster: int
    span: int  # rows of a block
    threads: int
    shared: int  # bytes of dynamic shared memory; 0: the problem is not held there


_plans: _cuda.Plans[Plan] = _cuda.Plans()


def _pow2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def cut(b: int, s: int, m: int, itemsize: int, device: Device) -> Cut:
    """As many blocks as fill the device, each with LEAST_ROWS rows or more, and as many more as hold the problem in
    shared memory. A problem that not even the largest cluster holds is one block's, which reads it from the caches."""
    cluster, found = 1, None
    while HELD and cluster <= device.cluster:
        span = -(-s // cluster)
        size = 4 * (2 * span + 5 * m) + span * m * itemsize
        if size <= device.shared - STATIC_SHARED:
            found = Cut(cluster, span, min(max(32 * _pow2(span), 128), THREADS), size)
            if span < 2 * LEAST_ROWS or 2 * cluster * b > device.sms:
                break
        cluster *= 2
    return found or Cut(1, s, THREADS, 0)


def _plan(x: Tensor, iterations: int, kernels: tuple[str, ...]) -> Plan:
    b, s, m = x.shape
    index = x.get_device()
    c = cut(b, s, m, x.element_size(), _cuda.device(index))
    numbers: dict[str, Any] = {
        "iterations": iterations,
        "rows": s,
        "columns": m,
        "span": c.span,
        "held": c.shared > 0,
        # a warp at least along the columns: what its threads add up is joined by one of them
        "log_threads": min(max(_pow2(m), 32), c.threads).bit_length() - 1,
        "log_ratio": math.log(m / s),
    }
    tiles = -(-s // TILE[0]) * -(-m // TILE[1])
    grids = {
        "iterate": Grid(b * c.cluster, c.threads, c.cluster, c.shared),
        "sweep": Grid(b * c.cluster, c.threads, c.cluster, c.shared),
        "gradient": Grid(b * tiles, TILE_THREADS),
    }
    most = {"iterate": THREADS, "sweep": THREADS, "gradient": TILE_THREADS}
    header = "forward" if kernels == ("iterate",) else "backward"
    launches = (
        _cuda.launch(
            "sinkhorn", header, f"sinkhorns::{kernel}<{DTYPES[x.dtype]}>", most[kernel], index, grids[kernel], numbers
        )
        for kernel in kernels
    )
    return Plan(tuple(launches), c.shared > 0)


def forward(log_kernel: Tensor, iterations: int, keep: bool = True) -> tuple[Tensor, Tensor | None]:
    """(log plan, potentials) of log_kernel (B, S, M). Without `keep` the potentials are None."""
    x = log_kernel.contiguous()
    plan = torch.empty_like(x)
    if not x.shape[0]:
        return plan, new_potentials(x, iterations) if keep else None
    index = x.get_device()
    key = (x.shape, x.dtype, index, iterations)
    found = _plans.get(key)
    if found is None:
        found = _plans[key] = _plan(x, iterations, ("iterate",))
    potentials = new_potentials(x, iterations) if keep or not found.held else None
    found.launches[0](_cuda.stream(index), x.data_ptr(), plan.data_ptr(), pointer(potentials), 0, 0, 0)
    return plan, potentials if keep else None


def backward(grad: Tensor, log_kernel: Tensor, potentials: Tensor) -> Tensor:
    """Gradient of log_kernel from that of the log plan, through every iteration."""
    x, grad = log_kernel.contiguous(), grad.contiguous()
    dx = torch.empty_like(x)
    if not x.shape[0]:
        return dx
    index, iterations = x.get_device(), potentials.shape[1]
    key = ("backward", x.shape, x.dtype, index, iterations)
    found = _plans.get(key)
    if found is None:
        found = _plans[key] = _plan(x, iterations, ("sweep", "gradient"))
    dpotentials = torch.empty_like(potentials)
    given = (x.data_ptr(), 0, potentials.data_ptr(), grad.data_ptr(), dpotentials.data_ptr(), dx.data_ptr())
    stream = _cuda.stream(index)
    for launch in found.launches:
        launch(stream, *given)
    return dx
