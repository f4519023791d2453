"""What test_maps.py asks of every operator on maps, of the triton kernels in triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from support.map_cases import (
    EMPTY,
    LAYOUTS,
    OPERATORS,
    check_format,
    check_out_of_range,
    check_without_eps,
    check_written,
)
from support.triton_numerics import DEVICE

from kernels.norm import launch_triton

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_output_is_written(name, shape):
    check_written(name, shape, "triton", DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_results_lie_in_memory_as_the_map_does(name, layout):
    check_format(name, layout, "triton", DEVICE)


@pytest.fixture(params=["resident", "merged", "combined"])
def path(request, monkeypatch):
    """The ways planes of different sizes take, for small ones (see norm/test_triton.py)."""
    if request.param != "resident":
        monkeypatch.setattr(launch_triton, "RESIDENT_FORWARD", 0)
        monkeypatch.setattr(launch_triton, "RESIDENT_BACKWARD", 0)
        monkeypatch.setattr(launch_triton, "MAX_CHUNKS", 3)
        monkeypatch.setattr(launch_triton, "MERGE_IN_APPLY", 1 << 20 if request.param == "merged" else 0)
    launch_triton.configure.cache_clear()
    yield request.param
    launch_triton.configure.cache_clear()


@pytest.mark.parametrize("channels_last, value", [(False, 0.1), (True, -1234.567)])
def test_constant_planes_without_eps(path, channels_last, value):
    for op in ("instance_norm", "adain", "munit_layer_norm"):
        check_without_eps(op, "triton", (41, 53), value, channels_last, device=DEVICE)


def test_values_out_of_range_show(path):
    check_out_of_range("triton", (41, 53), DEVICE)


def test_constant_planes_without_eps_in_16_bits():
    check_without_eps("instance_norm", "triton", (8, 9), 0.1, False, torch.bfloat16, DEVICE)
