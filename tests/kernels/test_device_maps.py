"""What test_maps.py asks of every operator on maps, of the kernels for GPUs: Triton's in its interpreter, CUDA's in the
emulation, or both on a GPU."""

from __future__ import annotations

import pytest
import torch
from support import norm_device
from support.device_numerics import DEVICE
from support.map_cases import (
    EMPTY,
    LAYOUTS,
    OPERATORS,
    check_format,
    check_out_of_range,
    check_without_eps,
    check_written,
)

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_every_output_is_written(name, shape, impl):
    check_written(name, shape, impl, DEVICE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_results_lie_in_memory_as_the_map_does(name, layout, impl):
    check_format(name, layout, impl, DEVICE)


@pytest.fixture(params=norm_device.PATHS)
def path(request, monkeypatch, impl):
    """The ways planes of different sizes take, for small ones (see norm/test_device.py)."""
    norm_device.force(monkeypatch, impl, request.param)
    yield request.param
    norm_device.restore(impl)


@pytest.mark.parametrize("channels_last, value", [(False, 0.1), (True, -1234.567)])
def test_constant_planes_without_eps(path, channels_last, value, impl):
    for op in ("instance_norm", "adain", "munit_layer_norm"):
        check_without_eps(op, impl, (41, 53), value, channels_last, device=DEVICE)


def test_values_out_of_range_show(path, impl):
    check_out_of_range(impl, (41, 53), DEVICE)


def test_constant_planes_without_eps_in_16_bits(impl):
    check_without_eps("instance_norm", impl, (8, 9), 0.1, False, torch.bfloat16, DEVICE)
