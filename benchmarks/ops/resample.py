"""The resample room as a suite: halving, doubling and padding of maps, against stock torch and a copy."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

import kernels
from benchmarks.engine.suite import Suite
from benchmarks.engine.work import DTYPES, EAGER, FUSED, Function, Json, Shape, Work, contestants, dtype_name

Tensor = torch.Tensor

CAREFUL = "careful"
DOWN, UP, PAD = NAMES = ("blur_downsample", "blur_upsample", "reflection_pad2d")
ABOUT = {
    EAGER: "stock operators as the published code calls them: CUT's Downsample, reflection padding and a grouped "
    "convolution of stride 2 with a filter in the map's dtype; CUT's Upsample, replication padding, a grouped "
    "transposed convolution, cropped; F.pad",
    CAREFUL: "the best of stock operators. Down in bfloat16 with a gradient: the convolution in float32 and back, as "
    "bfloat16's gradient takes two to four times as long; without a gradient, and in float32, `eager` is the best "
    "(nine strided slices added up, three rows and then three columns, or two average pools all take longer than the "
    "convolution). Up: bilinear F.interpolate, for NCHW bfloat16 in float32 and back; for NCHW float32 `eager` may be "
    "the faster. For the padding there is no other",
    f"torch.compile, {EAGER}": "`eager` compiled in the default mode, caches cold; compiling is reported, not counted",
    f"torch.compile, {CAREFUL}": "the same of `careful`",
    FUSED: 'this library, impl="auto"',
}

# (shape, reflection padding) of CUT at 256 x 256: both maps its encoder halves, both its decoder doubles, the padding
# before convolutions of the residual blocks and before the first one
SELECTED: dict[str, tuple[tuple[Shape, int], ...]] = {
    DOWN: (((1, 128, 256, 256), 0), ((1, 256, 128, 128), 0)),
    UP: (((1, 256, 64, 64), 0), ((1, 128, 128, 128), 0)),
    PAD: (((1, 256, 64, 64), 1), ((1, 3, 256, 256), 3)),
}
# in a full run also batches of four, an odd map of the discriminator, the padding before the last convolution
MORE: dict[str, tuple[tuple[Shape, int], ...]] = {
    DOWN: (((4, 128, 256, 256), 0), ((1, 128, 127, 127), 0)),
    UP: (((4, 256, 64, 64), 0), ((4, 128, 128, 128), 0)),
    PAD: (((1, 64, 256, 256), 3),),
}


class Case(NamedTuple):
    """One operator on one map."""

    name: str
    shape: Shape
    padding: int
    dtype: torch.dtype
    channels_last: bool
    compiled: bool = False

    @property
    def label(self) -> str:
        sizes = "x".join(map(str, self.shape)) + (f" p{self.padding}" if self.padding else "")
        return f"{self.name} {sizes} {'channels_last' if self.channels_last else 'NCHW'} {dtype_name(self.dtype)}"

    @property
    def output(self) -> Shape:
        n, c, h, w = self.shape
        if self.name == DOWN:
            return n, c, (h + 1) // 2, (w + 1) // 2
        return (n, c, 2 * h, 2 * w) if self.name == UP else (n, c, h + 2 * self.padding, w + 2 * self.padding)


def cases(full: bool, names: Sequence[str] = (), shapes: Sequence[Shape] = ()) -> list[Case]:
    """The selection, with torch.compile at one shape of each operator in the formats networks are mostly trained in; or
    with `full` more shapes, torch.compile everywhere."""
    found = []
    for name in NAMES:
        if shapes or (names and name not in names):  # these operators have no cases of the norms' shapes
            continue
        for i, (shape, padding) in enumerate(SELECTED[name] + (MORE[name] if full else ())):
            for dtype in DTYPES.values():
                for last in (False, True):
                    compiled = full or (i == 0 and last == (dtype == torch.bfloat16))
                    found.append(Case(name, shape, padding, dtype, last, compiled))
    return found


def describe(case: Case) -> Json:
    memory_format = "channels_last" if case.channels_last else "contiguous"
    return {"shape": list(case.shape), "padding": case.padding, "memory_format": memory_format}


def necessary_bytes(case: Case, backward: bool) -> int:
    """The map read once and the result written once; with the backward the result's gradient read, the map's written.
    The operators are linear: their backward needs nothing else."""
    elements = math.prod(case.shape) + math.prod(case.output)
    return (2 if backward else 1) * elements * case.dtype.itemsize


# ---- published forms -------------------------------------------------------------------------------------------------


def downsample(x: Tensor, filt: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), filt, stride=2, groups=x.shape[1])


def upsample(x: Tensor, filt: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(padded, filt, stride=2, padding=2, groups=x.shape[1])[:, :, 1:-1, 1:-1]


# ---- the best of stock operators -------------------------------------------------------------------------------------


def careful_downsample(x: Tensor, filt: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return downsample(x, filt)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect").float()
    return F.conv2d(padded, filt.float(), stride=2, groups=x.shape[1]).to(x.dtype)


def careful_upsample(x: Tensor, filt: Tensor) -> Tensor:
    wide = x.float() if x.is_contiguous() else x
    return F.interpolate(wide, scale_factor=2, mode="bilinear", align_corners=False).to(x.dtype)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def work(case: Case, device: torch.device) -> Work:
    """Seeded by the case. Filters are arguments, as buffers of a module have the map's dtype."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.label.encode()))
    form = torch.channels_last if case.channels_last else torch.contiguous_format

    def randn(shape: Shape) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, case.dtype).contiguous(memory_format=form)

    x, grad = randn(case.shape), randn(case.output)
    if case.name == PAD:
        sides = (case.padding,) * 4
        functions: dict[str, Function] = {
            EAGER: lambda x: [F.pad(x, sides, mode="reflect")],
            FUSED: lambda x: [kernels.reflection_pad2d(x, case.padding)],
        }
        return Work((x,), (0,), (grad,), contestants(functions, case.compiled))
    row = torch.tensor([1.0, 2.0, 1.0] if case.name == DOWN else [1.0, 3.0, 3.0, 1.0]) / 4
    filt = torch.outer(row, row).repeat(case.shape[1], 1, 1, 1).to(device, case.dtype)
    if case.name == DOWN:
        functions = {EAGER: lambda x, filt: [downsample(x, filt)]}
        if case.dtype == torch.bfloat16:
            functions[CAREFUL] = lambda x, filt: [careful_downsample(x, filt)]
        functions[FUSED] = lambda x, filt: [kernels.blur_downsample(x)]
    else:
        functions = {
            EAGER: lambda x, filt: [upsample(x, filt)],
            CAREFUL: lambda x, filt: [careful_upsample(x, filt)],
            FUSED: lambda x, filt: [kernels.blur_upsample(x)],
        }
    return Work((x, filt), (0,), (grad,), contestants(functions, case.compiled))


SUITE = Suite(
    name="resample",
    title="Antialiased resampling and reflection padding",
    operators=NAMES,
    about=ABOUT,
    legend="p1, p3: pixels of padding on every side. % of copy: time of a copy that moves the "
    "row's necessary bytes (map in, result out; with the backward as many again for the gradients) into memory that "
    "exists, measured in the same rounds, over fused's time; fused takes new memory for its result. Peak memory: "
    "allocations minus releases during one call, on a CPU of torch's allocator.",
    column=("% of copy", "percent_of_copy"),
    groups=(("operator", "dtype", "memory_format", "mode"),),
    cases=cases,
    work=work,
    describe=describe,
    necessary_bytes=necessary_bytes,
)
