"""What triton's launcher of the resample room does beside the numbers: widths of offsets, and tables on the device."""

from __future__ import annotations

import pytest
import torch
from support.device_numerics import DEVICE
from support.patches_cases import in_layout
from support.resample_cases import PADS, UP, down, planes
from support.resample_device import fused

import kernels
from kernels.resample import launch_triton


@pytest.mark.parametrize("impl", ["triton"], indirect=True)  # whose launches `launched` lists
@pytest.mark.parametrize("case", [down(3), UP, PADS[2]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_offsets_in_64_bits_are_the_same(case, layout, impl, launched, monkeypatch):
    x = in_layout(planes(case, 2, 8, 4, 5, torch.float32).to(DEVICE), layout)
    grad = torch.randn(case.published(x).shape, device=DEVICE)
    narrow = fused(impl, case, x, grad)
    monkeypatch.setattr(launch_triton, "NARROW", 0)
    wide = fused(impl, case, x, grad)
    assert [launch.constants["WIDE"] for launch in launched] == [False, False, True, True]
    assert all(torch.equal(narrow[name], wide[name]) for name in narrow)


def test_tables_are_made_once():
    x = torch.randn(1, 2, 6, 7, device=DEVICE)
    before = launch_triton._tables.cache_info().misses
    for _ in range(2):
        for given in (x, x.bfloat16(), x[:, :1].contiguous(memory_format=torch.channels_last)):
            kernels.blur_upsample(given, impl="triton")
    assert launch_triton._tables.cache_info().misses <= before + 1
