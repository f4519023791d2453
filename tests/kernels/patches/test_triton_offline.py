"""The triton patches kernels compiled for GPUs that are not here: what the launcher would really launch for CUT's
layers must fit each target's shared memory and registers and spill nothing. See offline.py."""

from __future__ import annotations

import pytest
import torch
from support.offline import (  # noqa: F401 (the fixture is found by its name)
    GFX942,
    Launch,
    assert_compile,
    assert_fit,
    every_generation,
    key,
    needs_assembler,
    one_parser_at_a_time,
    recorded,
)
from support.patches_cases import CUT

from kernels._triton import ASSUMED_SMS
from kernels.patches import launch_triton
from kernels.patches.spec import layout_of

REGISTERS = 128  # of a thread: four programs of four warps on a multiprocessor
SHARED = 4096


def launches(sizes: list[tuple], dtype: torch.dtype, channels_last: bool = False, count: int = 256) -> list[Launch]:
    """Of sample_patches forward, backward with drawn and with given positions, and of tap_patches backward."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.empty(size, dtype=dtype, device="meta", memory_format=order) for size in sizes]
    ids = [torch.empty(count, dtype=torch.int64, device="meta") for _ in maps]
    with recorded() as found:
        rows = launch_triton.forward(maps, ids)
        for unique in (True, False):
            launch_triton.backward(rows, ids, [layout_of(x) for x in maps], unique)
        launch_triton.add(maps[0], rows[0], ids[0])
    return found


@needs_assembler
@every_generation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resources(dtype, capability):
    found = launches(CUT, dtype, channels_last=dtype == torch.bfloat16)
    assert [launch.name for launch in found] == ["gather", "scatter", "scatter", "scatter"]
    assert_fit(found, capability, telling=("UNIQUE", "ADD"), registers=REGISTERS, shared=SHARED)


def test_compiles_for_gfx942():
    assert_compile(launches(CUT[:2], torch.bfloat16), GFX942)


def test_kernels_are_not_compiled_anew_for_every_shape():
    others = [(2, 1, 16, 1), (4, 16, 31, 512), (1, 17, 64, 64), (3, 256, 1, 1), (1, 64, 8, 8)]
    one, other = launches(CUT, torch.float32), launches(others, torch.float32, channels_last=True, count=16)
    assert [key(launch) for launch in one] == [key(launch) for launch in other]
    # of 1 and of multiples of 16 triton would make other kernels; see kernels/_triton.py
    sizes = [size for launch in one + other for problem in launch.args[3] for size in problem]
    assert all(size != 1 and size % 16 for size in sizes)


def test_five_layers_fill_the_device():
    assert launches(CUT, torch.float32)[0].programs >= ASSUMED_SMS
