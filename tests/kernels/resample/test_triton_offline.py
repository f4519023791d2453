"""The triton resample kernel compiled for GPUs that are not here: what the launcher would really launch for CUT's
layers must fit each target's registers and spill nothing. See offline.py."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch
from support.offline import (  # noqa: F401 (the fixture is found by its name)
    GFX942,
    POINTER,
    GPUTarget,
    Launch,
    assert_compile,
    assert_fit,
    compile_for,
    distinct,
    every_generation,
    key,
    needs_assembler,
    one_parser_at_a_time,
    recorded,
)

from kernels._triton import ASSUMED_SMS
from kernels.resample import launch_triton
from kernels.resample.spec import DOWN, PAD, UP, Spec

FLOAT, BF16 = torch.float32, torch.bfloat16
REGISTERS = 128  # of a thread: four programs of four warps on a multiprocessor
SHARED = 0  # no thread needs what another one has
TELLING = ("ROWS", "COLUMNS", "CHANNELS_LAST", "UNIT", "WIDE", "PLANES")


class Layer(NamedTuple):
    kind: int
    parameters: tuple[int, int]
    size: tuple[int, int, int, int]


CUT = [
    Layer(DOWN, (3, 0), (1, 128, 256, 256)),
    Layer(DOWN, (3, 0), (1, 256, 128, 128)),
    Layer(UP, (0, 0), (1, 256, 64, 64)),
    Layer(UP, (0, 0), (1, 128, 128, 128)),
    Layer(PAD, (1, 1), (1, 256, 64, 64)),
    Layer(PAD, (3, 3), (1, 3, 256, 256)),
]
WIDEST = [Layer(DOWN, (7, 0), (1, 128, 64, 64)), Layer(PAD, (6, 6), (1, 128, 7, 7))]


def launches_of(x: torch.Tensor, spec: Spec, channels_last: bool) -> list[Launch]:
    """Of an operator and of its gradient."""
    with recorded() as found:
        y = launch_triton.apply(x, spec, channels_last)
        launch_triton.apply(y, spec._replace(transposed=True), channels_last)
    return found


def launches(layers: list[Layer], dtype: torch.dtype, channels_last: bool) -> list[Launch]:
    order, found = torch.channels_last if channels_last else torch.contiguous_format, []
    for kind, parameters, size in layers:
        x = torch.empty(size, dtype=dtype, device="meta", memory_format=order)
        found += launches_of(x, Spec(kind, parameters, parameters, *size[2:]), channels_last)
    return found


def of_both_formats(layers: list[Layer], dtype: torch.dtype) -> list[Launch]:
    return [launch for channels_last in (False, True) for launch in launches(layers, dtype, channels_last)]


@needs_assembler
@every_generation
@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_resources(dtype, capability):
    found = distinct(of_both_formats(CUT, dtype))
    assert len(found) == 10  # 1 x 1 to 4 x 4 taps in both formats; channels last, two of them again for three channels
    assert_fit(found, capability, telling=TELLING, registers=REGISTERS, shared=SHARED)


@needs_assembler
@every_generation
def test_resources_of_many_taps_and_of_large_maps(capability, monkeypatch):
    found = of_both_formats(WIDEST, FLOAT)
    monkeypatch.setattr(launch_triton, "NARROW", 0)
    found = distinct(found + of_both_formats(CUT[:1], FLOAT))
    assert_fit(found, capability, telling=TELLING, registers=REGISTERS, shared=SHARED)


def test_compiles_for_gfx942():
    assert_compile(distinct(of_both_formats(CUT, BF16)), GFX942)


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_channels_last_moves_16_bytes_at_a_time(dtype):
    down = launches(CUT[:1], dtype, True)[0]
    ptx = compile_for(down, GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == 9 and len(re.findall(r"st\.global\S*\.v4\.b32", ptx)) == 1
    assert len(re.findall(r"st\.global", ptx)) == 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind, parameters", [(DOWN, (3, 0)), (UP, (0, 0)), (PAD, (1, 1))])
def test_kernels_are_not_compiled_anew_for_every_shape(kind, parameters, channels_last):
    sizes = [(1, 64, 256, 256), (1, 256, 16, 32), (3, 72, 33, 17), (2, 200, 48, 1000), (16, 512, 8, 11)]
    found = [[key(one) for one in launches([Layer(kind, parameters, s)], FLOAT, channels_last)] for s in sizes]
    assert all(keys == found[0] for keys in found)


def test_the_inside_of_a_larger_map_keeps_its_vectors():
    spec = Spec(DOWN, (3, 0), (3, 0), 64, 64)
    inside = torch.empty(2, 64, 68, 68, device="meta").contiguous(memory_format=torch.channels_last)[..., 2:-2, 2:-2]
    found, plain = (
        launches_of(x, spec, True)[0] for x in (inside, inside.contiguous(memory_format=torch.channels_last))
    )
    assert key(found) == key(plain) and found.constants["UNIT"] == 4


def test_offsets_beyond_32_bits_are_seen():
    def wide(kind, parameters, size, channels_last):
        return [launch.constants["WIDE"] for launch in launches([Layer(kind, parameters, size)], BF16, channels_last)]

    assert wide(DOWN, (3, 0), (1 << 16, 64, 32, 32), False) == [False] * 2  # small planes of a huge batch
    assert wide(DOWN, (3, 0), (64, 64, 1024, 1024), True) == [False] * 2
    assert wide(UP, (0, 0), (1, 1, 30000, 30000), False) == [True] * 2  # what it writes, then what it reads
    assert wide(PAD, (1, 1), (1, 32, 8200, 8200), True) == [True] * 2
    assert wide(PAD, (0, 1), (1, 32, 8191, 8191), True) == [True, False]  # its offsets end at 2^31 - 32


def test_large_layers_fill_the_device():
    for launch in of_both_formats(CUT, FLOAT):
        assert launch.programs >= 3 * ASSUMED_SMS, launch.constants
