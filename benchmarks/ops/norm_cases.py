"""What is measured of the norms: operators, the shapes published networks give them, and seeded inputs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

import kernels
from benchmarks.engine.work import DTYPES, Function, Json, Shape, dtype_name
from kernels._layout import dense


class Operator(NamedTuple):
    """One fused operator with the epilogue a published network puts behind it."""

    name: str  # as --op takes it
    kernel: str  # the public function of `kernels`
    activation: str
    residual: bool
    shapes: tuple[tuple[Shape, int], ...]  # (shape, reflection padding), from the published networks
    selected: tuple[tuple[Shape, int], ...]  # what a run without --full takes of them
    compile_selected: bool  # whether that run has time for torch.compile, forward and backward

    @property
    def dimensions(self) -> int:
        """4, or 5 where the maps are volumes."""
        return len(self.shapes[0][0])

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the inputs, in the order every contestant takes them."""
        extra = {
            "adaptive_instance_norm": ("scale", "shift"),
            "adain": ("style",),
            "munit_layer_norm": ("gamma", "beta"),
        }
        return ("x", *extra.get(self.kernel, ()), *(("residual",) if self.residual else ()))


# CUT at 256x256 (generator, then discriminators), batch 4, and 8 images at once: tensors of 128 MB.
_GENERATOR = ((1, 64, 256, 256), (1, 128, 256, 256), (1, 256, 128, 128), (1, 128, 128, 128), (1, 256, 64, 64))
_BATCHES = ((4, 256, 64, 64), (8, 64, 256, 256))
_DISCRIMINATOR = ((1, 128, 127, 127), (1, 256, 63, 63), (1, 512, 31, 31), (1, 128, 64, 64), (1, 256, 32, 32))
_BLOCK = ((1, 256, 64, 64), (4, 256, 64, 64))
# nnU-Net at 128 x 128 x 128, halved here, from its first stage to its last.
_VOLUMES = ((2, 32, 64, 64, 64), (2, 64, 32, 32, 32), (2, 128, 16, 16, 16), (2, 320, 5, 6, 5))
_AWKWARD = ((2, 37, 61, 47), (1, 3, 256, 256))  # odd sizes throughout, and an image's three channels
_AWKWARD_3D = ((2, 37, 9, 19, 13), (1, 3, 48, 48, 48))


def _plain(*shapes: Shape) -> tuple[tuple[Shape, int], ...]:
    return tuple((shape, 0) for shape in shapes)


_BIG, _SMALL = (1, 64, 256, 256), (1, 256, 64, 64)
OPERATORS = (
    Operator("instance_norm", "instance_norm", "none", False, _plain(_BIG, *_BLOCK), _plain(_SMALL), False),
    Operator(
        "instance_norm_relu",
        "instance_norm",
        "relu",
        False,
        _plain(*_GENERATOR, *_BATCHES),
        _plain(_BIG, _SMALL, _AWKWARD[0]),
        False,
    ),
    Operator(
        "instance_norm_leaky_relu",
        "instance_norm",
        "leaky_relu",
        False,
        _plain(*_DISCRIMINATOR, _SMALL),
        _plain(_DISCRIMINATOR[0], _SMALL),
        True,
    ),
    Operator(
        "instance_norm_3d_leaky_relu",
        "instance_norm",
        "leaky_relu",
        False,
        _plain(*_VOLUMES),
        _plain(_VOLUMES[1], _VOLUMES[3]),
        True,
    ),
    Operator("instance_norm_residual", "instance_norm", "none", True, _plain(*_BLOCK), _plain(_SMALL), True),
    Operator(
        "instance_norm_relu_pad",
        "instance_norm",
        "relu",
        False,
        ((_BIG, 3), *((shape, 1) for shape in _BLOCK)),
        ((_SMALL, 1),),
        True,
    ),
    Operator(
        "adaptive_instance_norm_relu",
        "adaptive_instance_norm",
        "relu",
        False,
        _plain(*_BLOCK, (8, 512, 32, 32)),
        _plain(_SMALL),
        False,
    ),
    Operator(
        "adain",
        "adain",
        "none",
        False,
        _plain((1, 512, 32, 32), (8, 512, 32, 32), _SMALL),
        _plain((1, 512, 32, 32)),
        False,
    ),
    Operator(
        "munit_layer_norm_relu",
        "munit_layer_norm",
        "relu",
        False,
        _plain((1, 128, 128, 128), _BIG),
        _plain((1, 128, 128, 128), _AWKWARD[1]),
        False,
    ),
)


class Case(NamedTuple):
    """One operator at one shape, dtype and memory format."""

    op: Operator
    shape: Shape
    padding: int
    dtype: torch.dtype
    channels_last: bool
    compiled: tuple[bool, ...]  # without and with the backward: where torch.compile is among the contestants

    @property
    def name(self) -> str:
        return self.op.name

    @property
    def memory_format(self) -> str:
        return "channels_last" if self.channels_last else "contiguous"

    @property
    def label(self) -> str:
        sizes = "x".join(map(str, self.shape)) + (f" p{self.padding}" if self.padding else "")
        return f"{self.op.name} {sizes} {dtype_name(self.dtype)} {self.memory_format}"


def describe(case: Case) -> Json:
    return {"shape": list(case.shape), "padding": case.padding, "memory_format": case.memory_format}


def cases(full: bool, names: Sequence[str] = (), shapes: Sequence[Shape] = ()) -> list[Case]:
    """Cases of the operators called `names` (all when empty), at `shapes` instead of the published ones if given: each
    operator at those of its number of dimensions."""
    found = []
    for op in OPERATORS:
        if names and op.name not in names:
            continue
        padded = op.shapes[0][1] > 0
        chosen: Iterable[tuple[Shape, int]]
        if shapes:
            chosen = [(shape, int(padded)) for shape in shapes if len(shape) == op.dimensions]
        elif full:
            awkward = _AWKWARD if op.dimensions == 4 else _AWKWARD_3D
            chosen = [*op.shapes, *((shape, int(padded)) for shape in awkward)]
        else:
            chosen = op.selected
        compiled = (False, True) if full or shapes else (True,) if op.compile_selected else ()
        found += [
            Case(op, shape, pad, dtype, channels_last, compiled)
            for shape, pad in chosen
            for dtype in DTYPES.values()
            for channels_last in (False, True)
        ]
    return found


def make_inputs(case: Case, device: torch.device) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The operator's arguments in order, and the gradient that arrives at its output.

    Activations are as a convolution leaves them, every channel with its own mean and deviation; seeded by the case, and
    the same in both memory formats. A ReLU's gradient jumps at 0, where two right implementations may round to
    different sides. The arriving gradient is 0 within a rounding error of that point, so that the gate can compare
    gradients element by element.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.op.name} {case.shape} {case.padding}".encode()))
    n, c = case.shape[:2]
    per_channel = (1, c, *(1,) * (len(case.shape) - 2))

    def activations() -> torch.Tensor:
        mean = torch.randn(per_channel, generator=generator)
        deviation = torch.rand(per_channel, generator=generator) * 1.5 + 0.5
        return torch.randn(case.shape, generator=generator) * deviation + mean

    def parameters(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.5 + 0.5

    made = {
        "x": activations,
        "residual": activations,
        "style": activations,
        "scale": lambda: parameters(n, c),
        "shift": lambda: parameters(n, c),
        "gamma": lambda: parameters(c),
        "beta": lambda: parameters(c),
    }
    tensors = [made[name]().to(device, case.dtype) for name in case.op.tensors]
    space = [size + 2 * case.padding for size in case.shape[2:]]
    grad = torch.randn((n, c, *space), generator=generator).to(device, case.dtype)
    if case.op.activation != "none":
        (before,) = fused(case, "reference", activation="none")(*(t.double() for t in tensors))
        grad[before.abs() < (1e-3 if case.dtype == torch.float32 else 3e-2)] = 0

    def arranged(t: torch.Tensor) -> torch.Tensor:
        return dense(t, case.channels_last and t.dim() > 2)

    return tuple(map(arranged, tensors)), arranged(grad)


def fused(case: Case, impl: str = "auto", activation: str | None = None) -> Function:
    """The case as one call of this library: function(*tensors) -> [y]."""
    function = getattr(kernels, case.op.kernel)
    if case.op.kernel == "adain":
        return lambda content, style: [function(content, style, impl=impl)]
    options = {"activation": activation or case.op.activation, "padding": case.padding, "impl": impl}
    if case.op.residual:
        return lambda x, residual: [function(x, residual=residual, **options)]
    return lambda x, *parameters: [function(x, *parameters, **options)]


def necessary_bytes(case: Case, backward: bool) -> int:
    """What any implementation must move: each input read once and each result written once, per direction.

    Forward: x and the output, the residual or the style if there is one. Backward: x and the arriving gradient in, dx
    out; the style again in and its gradient out. A residual's gradient is the arriving one itself, unless padding
    has to be folded back first (no case here). Parameters are not counted.
    """
    n, c, *space = case.shape
    plane, padded = math.prod(space), math.prod(size + 2 * case.padding for size in space)
    style = "style" in case.op.tensors
    elements = plane + padded + plane * (case.op.residual or style)
    if backward:
        elements += plane + padded + plane + 2 * plane * style
    return n * c * elements * case.dtype.itemsize
