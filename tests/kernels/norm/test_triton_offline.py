"""The triton kernels of the norm family compiled for GPUs that are not here: what the launcher would really launch for
the published networks' shapes must fit each target's shared memory and registers, and spill nothing to speak of.

The launcher runs on meta tensors with its launches recorded instead of run; so the tiles, warps, alignments and
constants that are compiled are those of `kernels.norm.launch_triton`, not a copy kept here.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from support.offline import (  # noqa: F401 (the fixture is found by its name)
    GFX942,
    GPUTarget,
    Launch,
    assert_compile,
    assert_fit,
    describe,
    kernels_of,
    key,
    needs_assembler,
    one_parser_at_a_time,
    recorded,
)
from support.offline import distinct as distinct_launches

from kernels._triton import ASSUMED_SMS
from kernels.norm import launch_triton, triton_backward, triton_forward
from kernels.norm.spec import ACTIVATIONS, INSTANCE, INSTANCE_UNBIASED, LAYER_STD, Spec

# Bytes of stores and loads together. On sm_80 ptxas gives up one register of 7 kernels in 440 that are far from any
# limit, to fit one more program on a multiprocessor.
SPILLED = {80: 8, 90: 0, 100: 0}
TELLING = ("PAD", "ACT", "CHANNELS_LAST")


# ---- what would be launched ---------------------------------------------------------------------------------------


class Case(NamedTuple):
    shape: tuple
    dtype: torch.dtype
    channels_last: bool = False
    kind: int = INSTANCE
    activation: str = "relu"
    padding: int = 0
    parameters: str = ""  # "", "channel" or "sample"
    residual: str = ""  # "", "dense" or "strided": the inside of a map padded by 1


def launches(case: Case) -> list[Launch]:
    """Everything forward and backward of this call would launch; of the moments pair too, where the form is its own."""

    def new(*shape):
        order = torch.channels_last if case.channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=case.dtype, device="meta", memory_format=order)

    n, c, h, w = case.shape
    x = new(*case.shape)
    parameter = None
    if case.parameters:
        parameter = torch.empty((n, c) if case.parameters == "sample" else (c,), device="meta")
    residual = None
    if case.residual:
        residual = new(*case.shape) if case.residual == "dense" else new(n, c, h + 2, w + 2)[:, :, 1:-1, 1:-1]
    spec = Spec(case.kind, 1e-5, 0.0, ACTIVATIONS.index(case.activation), 0.2, case.padding)
    with recorded() as found:
        y, stats = launch_triton.forward(x, parameter, parameter, residual, spec)
        launch_triton.backward(torch.empty_like(y), x, parameter, parameter, stats, case.padding > 0, spec)
        if case.kind == INSTANCE_UNBIASED:
            launch_triton.moments(x, case.kind, 1e-5)
            launch_triton.moments_backward(stats[0], stats[3], x, stats, case.kind)
    return found


def distinct(cases: list[Case]) -> list[Launch]:
    return distinct_launches(launch for case in cases for launch in launches(case))


# ---- the published networks' shapes ------------------------------------------------------------------------

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16


def network_cases(dtype: torch.dtype, channels_last: bool) -> list[Case]:
    """CUT's generator and discriminator and MUNIT at 256x256, batch 1; sizes as StarGAN's and FUNIT's, larger batch."""
    made = functools.partial(Case, dtype=dtype, channels_last=channels_last)
    return [
        made((1, 64, 256, 256)),
        made((1, 64, 256, 256), padding=3),  # before the last 7x7 convolution
        made((1, 128, 256, 256)),
        made((1, 256, 128, 128)),
        made((1, 256, 64, 64), padding=1),  # inside a residual block
        made((1, 256, 64, 64), activation="none", residual="strided", padding=1),  # its end, before the next
        made((1, 256, 64, 64), activation="none", residual="dense"),
        made((1, 128, 127, 127), activation="leaky_relu"),
        made((1, 256, 63, 63), activation="leaky_relu"),
        made((1, 512, 31, 31), activation="leaky_relu"),
        made((1, 256, 64, 64), parameters="sample", padding=1),
        made((1, 256, 64, 64), parameters="sample", activation="none", residual="strided"),
        made((1, 128, 128, 128), kind=LAYER_STD, parameters="channel"),
        made((1, 64, 256, 256), kind=LAYER_STD, parameters="channel", padding=3),
        made((16, 64, 128, 128), parameters="channel"),
        made((8, 512, 16, 16), parameters="sample", activation="leaky_relu"),
        made((1, 512, 32, 32), kind=INSTANCE_UNBIASED, parameters="sample", activation="none"),
    ]


def odd_cases(dtype: torch.dtype, channels_last: bool) -> list[Case]:
    """Sizes of 1, which triton makes constants; sizes no vector divides; tiles at their limits; every activation."""
    made = functools.partial(Case, dtype=dtype, channels_last=channels_last)
    return [
        made((4, 64, 1, 1), kind=LAYER_STD, parameters="channel"),
        made((2, 1, 64, 64), activation="tanh", padding=1, residual="strided"),
        made((1, 1, 1024, 1024), parameters="channel"),
        made((3, 3, 7, 9), parameters="sample", padding=3),
        made((70, 9, 2, 2), activation="tanh"),
        made((1, 64, 180, 180), activation="tanh", residual="dense"),
        made((1, 8, 128, 128), activation="tanh", parameters="sample", residual="strided"),
        made((1, 48, 211, 197), kind=INSTANCE_UNBIASED, parameters="sample", residual="strided"),
        made((4, 96, 90, 91), activation="leaky_relu", parameters="channel", padding=1, residual="strided"),
    ]


def every_case() -> list[Case]:
    layouts = [(d, channels_last) for d in (FLOAT, BF16, HALF) for channels_last in (False, True)]
    return [case for layout in layouts for case in (*network_cases(*layout), *odd_cases(*layout))]


def selection() -> list[Case]:
    """Of every kernel, the heaviest configurations; the rest is for `pytest -m slow`."""
    return [
        case
        for dtype, channels_last in ((FLOAT, False), (FLOAT, True), (BF16, False), (BF16, True))
        for case in network_cases(dtype, channels_last)[(0 if dtype is FLOAT else 1) :: 4]
    ]


def assert_fits(cases: list[Case], capability: int) -> None:
    assert_fit(distinct(cases), capability, SPILLED[capability], TELLING)


def assert_compiles(cases: list[Case], target: GPUTarget) -> None:
    assert_compile(distinct(cases), target)


def test_the_selection_has_every_kernel():
    names = {launch.name for launch in distinct(selection())}
    assert names == kernels_of(triton_forward, triton_backward)


@needs_assembler
def test_resources_on_sm90():
    assert_fits(selection(), 90)


@pytest.mark.slow
@needs_assembler
@pytest.mark.parametrize("capability", [80, 100])
def test_resources_on_other_generations(capability):
    assert_fits(selection()[::3], capability)


def test_compiles_for_gfx942():
    assert_compiles(selection()[1::4], GFX942)


@pytest.mark.slow
@needs_assembler
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_resources_of_everything(capability):
    assert_fits(every_case(), capability)


@pytest.mark.slow
def test_everything_compiles_for_gfx942():
    assert_compiles(every_case(), GFX942)


# ---- the heuristic itself ----------------------------------------------------------------------------------


def of(name: str, found: list[Launch]) -> list[Launch]:
    return [launch for launch in found if launch.name == name]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT, BF16])
def test_one_large_image_fills_the_device(dtype, channels_last):
    """64 planes of 256x256 are 64 programs for an algorithm of one program per plane, on 132 multiprocessors."""
    for launch in launches(Case((1, 64, 256, 256), dtype, channels_last)):
        if not launch.name.startswith("combine"):
            assert launch.programs >= 3 * ASSUMED_SMS, describe(launch, TELLING)


def test_planes_that_fit_a_tile_take_one_launch():
    for shape in ((1, 256, 64, 64), (1, 128, 127, 127), (1, 512, 31, 31), (8, 512, 16, 16)):
        assert [launch.name for launch in launches(Case(shape, FLOAT))] == [
            "forward_resident",
            "backward_resident",
        ]


def test_offsets_beyond_32_bits_are_seen():
    many = launches(Case((70000, 64, 32, 32), BF16))  # every plane small: 64 bits for its start alone
    assert not any(launch.constants["WIDE"] for launch in many)
    for case in (Case((1, 2, 40000, 60000), BF16), Case((1, 64, 8192, 8192), BF16, channels_last=True)):
        assert all(launch.constants.get("WIDE", True) for launch in launches(case))


def test_kernels_are_not_compiled_anew_for_every_shape():
    """Sizes are arguments: images of other sizes find their kernels compiled, up to the divisibility of a row by 16."""
    shapes = [(1, 64, 256, 256), (1, 64, 256, 240), (1, 80, 240, 256), (2, 64, 224, 256)]
    assert len({key(launch) for shape in shapes for launch in launches(Case(shape, FLOAT))}) <= 6


@pytest.mark.parametrize("n,c,length", [(1, 1, 2), (1, 64, 65536), (3, 5, 1 << 22), (2, 512, 961), (1000, 3, 49)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resident", [0, 16384])
def test_chunks_cover_each_plane_once(n, c, length, channels_last, resident):
    for itemsize in (2, 4):
        config = launch_triton.configure(n, c, length, itemsize, channels_last, 132, resident=resident, per_thread=16)
        span = config.tiles * config.block_l
        assert (config.chunks - 1) * span < length <= config.chunks * span
        assert not config.resident or config.chunks == config.tiles == 1
        assert config.chunks <= launch_triton.MAX_CHUNKS and config.warps in (1, 2, 4, 8, 16, 32)
