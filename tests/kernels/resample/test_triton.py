"""What the triton resample kernel must compute, in triton's interpreter (TRITON_INTERPRET=1) or on a GPU."""

from __future__ import annotations

import pytest
import torch
from support.numerics import error
from support.patches_cases import in_layout
from support.resample_cases import CASES, PADS, UP, down, pad, planes
from support.resample_triton import both, check, fused, on_host
from support.triton_numerics import DEVICE

import kernels
from kernels.resample import launch_triton

SOME = [down(3), UP, PADS[1]]
IN_DTYPES = [(dtype, case) for dtype in (torch.float32, torch.bfloat16) for case in CASES]
IN_DTYPES += [(torch.float16, case) for case in SOME]

# (N, C), (H, W), layout: as few programs as reach every way through the kernel
INPUTS = [
    ((1, 1), (1, 1), "contiguous"),
    ((2, 3), (5, 9), "inside"),  # a part of a tile's planes
    ((1, 6), (4, 5), "transposed"),  # more planes than a tile's
    ((2, 3), (5, 4), "channels_last"),  # no whole vector
    ((1, 24), (5, 3), "inside channels_last"),  # whole vectors, a part of a tile's channels
]
TILES = [((1, 5), (9, 17), "contiguous"), ((1, 72), (5, 4), "channels_last"), ((1, 67), (2, 3), "channels_last")]

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


@pytest.mark.parametrize("dtype, case", IN_DTYPES, ids=lambda it: getattr(it, "name", str(it)))
def test_values_and_gradients(dtype, case, launched):
    for channels, size, layout in INPUTS:
        check(case, planes(case, *channels, *size, dtype), layout)
    assert len(launched) == 2 * len(INPUTS)
    assert {launch.constants["UNIT"] for launch in launched} == {1, 4 if dtype == torch.float32 else 8}


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_several_tiles(case, launched):
    for channels, size, layout in TILES:
        check(case, planes(case, *channels, *size, torch.float32), layout)
    assert all(launch.programs > 1 for launch in launched)


@pytest.mark.parametrize("case", [down(3), UP, PADS[2]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_offsets_in_64_bits_are_the_same(case, layout, launched, monkeypatch):
    x = in_layout(planes(case, 2, 8, 4, 5, torch.float32).to(DEVICE), layout)
    grad = torch.randn(case.published(x).shape, device=DEVICE)
    narrow = fused(case, x, grad)
    monkeypatch.setattr(launch_triton, "NARROW", 0)
    wide = fused(case, x, grad)
    assert [launch.constants["WIDE"] for launch in launched] == [False, False, True, True]
    assert all(torch.equal(narrow[name], wide[name]) for name in narrow)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_another_layout(case, layout):
    x = in_layout(planes(case, 2, 8, 4, 5, torch.float32).to(DEVICE), layout)
    shape = case.published(x).shape
    grad = torch.randn(shape, device=DEVICE)
    other = "channels_last" if layout == "contiguous" else "contiguous"
    found = [fused(case, x, in_layout(grad, form))["dx"] for form in (layout, other)]
    expanded = fused(case, x, torch.ones(1, 1, 1, 1, device=DEVICE).expand(shape))["dx"]
    assert torch.equal(*found) and found[0].stride() == found[1].stride() == x.stride()
    want = both(case.published, x.double(), torch.ones(shape, dtype=torch.float64, device=DEVICE))["dx"]
    assert error(expanded, want) <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("case", [down(3), down(4), UP, *PADS[:3]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinity_reaches_only_what_is_made_of_it(case, layout):
    """No weight of 0 touches it: 0 * inf would be NaN."""
    x = planes(case, 1, 4, 9, 12, torch.float32)
    x[0, 0, 0, 0] = x[0, 1, 3, 7] = x[0, 3, 8, 11] = float("inf")
    grad = torch.ones(case.published(x).shape)
    grad[0, 0, 0, 0] = grad[0, 1, 2, 3] = grad[0, 3, -1, -1] = float("inf")
    ours = on_host(fused(case, in_layout(x.to(DEVICE), layout), grad.to(DEVICE)))
    want = both(case.published, x.double(), torch.ones_like(grad).double())
    assert torch.equal(ours["y"].isinf(), want["y"].isinf()) and not ours["y"].isnan().any()
    # torch's gradients multiply by zeros; those of which pixel is made of which are those of a one in place of infinity
    touched = both(case.published, x.double(), grad.isinf().double())["dx"] != 0
    assert torch.equal(ours["dx"].isinf(), touched) and not ours["dx"].isnan().any()


@pytest.mark.parametrize("size", [2, 9])
def test_padding_as_wide_as_the_plane(size):
    """A pixel comes three times on each axis."""
    check(pad(*(size - 1,) * 4), torch.randn(1, 2, size, size), "contiguous")


def test_padding_copies_every_bit():
    x = torch.tensor([-0.0, 1e-40, 1e-45, -3e38], device=DEVICE).view(1, 1, 2, 2)
    y = kernels.reflection_pad2d(x, 1, impl="triton").cpu()
    want = torch.nn.functional.pad(x.cpu(), (1, 1, 1, 1), mode="reflect")
    assert torch.equal(y.view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize("case", [down(3), UP, PADS[0]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_derivatives(case, layout, launched):
    results = []
    start = in_layout((planes(case, 1, 4, 5, 6, torch.float32) / 4).to(DEVICE), layout)
    for f, dtype in ((lambda x: case.ours(x, "triton"), torch.float32), (case.published, torch.float64)):
        x = start.to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(f(x).pow(4).sum(), x, create_graph=True)
        results += [first, *torch.autograd.grad(first.sin().sum(), x)]
    assert len(launched) == 4
    for ours, want in zip(results[:2], results[2:]):
        torch.testing.assert_close(ours.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_tables_are_made_once():
    x = torch.randn(1, 2, 6, 7, device=DEVICE)
    before = launch_triton._tables.cache_info().misses
    for _ in range(2):
        for given in (x, x.bfloat16(), x[:, :1].contiguous(memory_format=torch.channels_last)):
            kernels.blur_upsample(given, impl="triton")
    assert launch_triton._tables.cache_info().misses <= before + 1


def test_empty(launched):
    for shape in ((0, 3, 4, 6), (2, 0, 4, 6)):
        x = torch.zeros(shape, device=DEVICE, requires_grad=True)
        y = kernels.blur_downsample(x, impl="triton")
        assert y.shape == (*shape[:2], 2, 3)
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape
    assert not launched
