"""Tensors to addresses and plans for the CUDA kernel (csrc/cuda/resample). No autograd, no checks of arguments.

A plan is the launch of all calls with one shape, layout, dtype and operator. Launches go to the current stream, nothing
is copied to the host or from it and all memory comes from torch: safe inside CUDA graphs once each plan has run.
"""

from __future__ import annotations

import math

import torch

from kernels import _cuda
from kernels._cuda import DTYPES, Grid, Launch
from kernels._layout import dense
from kernels.resample.spec import DOWN, PAD, UP, Spec, new_output
from kernels.resample.taps import margins

Tensor = torch.Tensor

THREADS = 256  # of a block, at most
VECTORS = 32  # threads of a block along channels, channels last, at most

_plans: _cuda.Plans[Launch] = _cuda.Plans()


def _fits(unit: int, multiples: int) -> int:
    """`unit` halved until it divides `multiples`: any numbers or'ed together."""
    while multiples % unit:
        unit //= 2
    return unit


def _form(spec: Spec) -> tuple[int, int, bool, int]:
    """(stride, taps of an axis, whether the kernel expands, most taps of a pixel on an axis), the words of
    csrc/cuda/resample/axis.cuh. x2 and its gradient are those of a filter of four taps the other way round."""
    taps = {PAD: 1, DOWN: spec.rows[0], UP: 4}[spec.kind]
    expand = spec.transposed != (spec.kind == UP)
    if spec.kind == PAD:
        return 1, taps, expand, 1
    if expand:
        return 2, taps, True, 2 if taps <= 4 else 4
    return 2, taps, False, 4 if taps <= 4 else 7


def _columns(width: int, size: int, expand: bool, stride: int) -> int:
    """Columns of a thread, contiguous: as many as 16 bytes of the result hold, and where the kernel contracts, 4 bytes.
    There a thread's loads stand apart, and the more so the more columns it has: of float32 with four columns each load
    would take a warp to eight lines of the cache where it now goes to two."""
    return _fits((16 if expand or stride == 1 else 4) // size, width)


def _plan(x: Tensor, spec: Spec, channels_last: bool) -> Launch:
    n, c, in_height, in_width = x.shape
    height, width = spec.output
    stride, taps, expand, most = _form(spec)
    sn, sc, sh, sw = x.stride()
    size = x.element_size()
    columns = vector = 1
    if channels_last:
        vector = _fits(16 // size, c)
        while (x.data_ptr() | sn * size | sh * size | sw * size) % (vector * size):
            vector //= 2
    else:
        columns = _columns(width, size, expand, stride)
    items = height * width // columns
    if max(in_height, height) * max(in_width, width) >= 2**31 - 2**20:
        raise ValueError(f"x: got planes of {in_height} x {in_width}, want less than 2^31 pixels for the CUDA kernels")
    log_vectors = min((c // vector - 1).bit_length(), VECTORS.bit_length() - 1) if channels_last else 0
    threads = min(max(1 << (items - 1).bit_length() << log_vectors, 32), THREADS)
    blocks = -(-items // (threads >> log_vectors)) * n * (-(-c // (vector << log_vectors)) if channels_last else c)
    if spec.kind == UP:
        before, behind, weights = (1, 1), (1, 1), [0.25, 0.75, 0.75, 0.25]
    else:
        before, behind = zip(margins(spec.kind, spec.rows), margins(spec.kind, spec.columns))
        weights = [math.comb(taps - 1, t) / 2.0 ** (taps - 1) for t in range(taps)]
    template = f"{DTYPES[x.dtype]}, {columns}, {vector}, {stride}, {most}, {str(expand).lower()}"
    function = f"resamples::resample<{template}, {str(channels_last).lower()}>"
    numbers = {
        "sn": sn,
        "sc": sc,
        "sh": sh,
        "sw": sw,
        "channels": c,
        "height": height,
        "width": width,
        "in_height": in_height,
        "in_width": in_width,
        "before": before,
        "behind": behind,
        "taps": taps,
        "clamped": spec.kind == UP,
        "log_vectors": log_vectors,
        "weight": weights,
    }
    return _cuda.launch("resample", "resample", function, THREADS, x.get_device(), Grid(blocks, threads), numbers)


def apply(x: Tensor, spec: Spec, channels_last: bool) -> Tensor:
    """The operator or its gradient on x (N, C, H, W), which is read where it is: rows may lie apart or be repeated. The
    result lies in memory as `channels_last` says."""
    y = new_output(x, spec, channels_last)
    if not y.numel():
        return y
    if channels_last and x.stride(1) != 1:  # a gradient of the other format: one pass here, or one for each tap
        x = dense(x, channels_last)
    index, at = x.get_device(), x.data_ptr()
    key = (x.shape, x.stride(), x.dtype, index, spec, channels_last, at & 15)
    launch = _plans.get(key)
    if launch is None:
        launch = _plans[key] = _plan(x, spec, channels_last)
    launch(_cuda.stream(index), at, y.data_ptr())
    return y
