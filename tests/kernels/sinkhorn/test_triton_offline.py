"""The triton Sinkhorn kernels compiled for GPUs that are not here: what the launcher would really launch must fit each
target's shared memory and registers and spill nothing. See offline.py."""

from __future__ import annotations

import torch
from support.offline import (  # noqa: F401 (the fixture is found by its name)
    GFX942,
    Launch,
    assert_compile,
    assert_fit,
    distinct,
    every_generation,
    needs_assembler,
    one_parser_at_a_time,
    recorded,
)

from kernels.sinkhorn import launch_triton

SIZES = [(5, 256, 256), (1, 1024, 1024), (3, 33, 20), (2, 64, 1)]


def launches(shape: tuple[int, int, int], dtype: torch.dtype) -> list[Launch]:
    """Everything forward and backward of this call would launch."""
    x = torch.empty(shape, dtype=dtype, device="meta")
    with recorded() as found:
        plan, potentials = launch_triton.forward(x, 50)
        launch_triton.backward(plan, x, potentials)
    return found


@needs_assembler
@every_generation
def test_resources(capability):
    cases = [(size, torch.float32) for size in SIZES] + [(SIZES[0], torch.bfloat16)]
    assert_fit(distinct(launch for case in cases for launch in launches(*case)), capability)


def test_compiles_for_gfx942():
    assert_compile(launches(SIZES[0], torch.float32), GFX942)
