"""The triton kernels of the norm family compiled for GPUs that are not here: what the launcher would really launch for
the published networks' shapes must fit each target's shared memory and registers, and spill nothing to speak of.

The launcher runs on meta tensors with its launches recorded instead of run; so the tiles, warps, alignments and
constants that are compiled are those of `kernels.norm.launch_triton`, not a copy kept here.
"""

from __future__ import annotations

import pytest
from support.norm_networks import BF16, FLOAT, Case, call, every_case, network_cases
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

# Bytes of stores and loads together. On sm_80 ptxas gives up one register of 7 kernels in 440 that are far from any
# limit, to fit one more program on a multiprocessor.
SPILLED = {80: 8, 90: 0, 100: 0}
TELLING = ("PAD", "ACT", "CHANNELS_LAST")


# ---- what would be launched ---------------------------------------------------------------------------------------


def launches(case: Case) -> list[Launch]:
    with recorded() as found:
        call(launch_triton, case)
    return found


def distinct(cases: list[Case]) -> list[Launch]:
    return distinct_launches(launch for case in cases for launch in launches(case))


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
