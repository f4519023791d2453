"""What the resample kernels for GPUs must compute: Triton's in its interpreter (TRITON_INTERPRET=1), CUDA's in the
emulation, or both on a GPU."""

from __future__ import annotations

import pytest
import torch
from support import emulated
from support.device_numerics import DEVICE
from support.numerics import error
from support.patches_cases import in_layout
from support.resample_cases import CASES, PADS, UP, down, pad, planes
from support.resample_device import both, check, fused, on_host

import kernels

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
# several tiles, and a part of one
TILES = {
    "triton": [((1, 5), (9, 17), "contiguous"), ((1, 72), (5, 4), "channels_last"), ((1, 67), (2, 3), "channels_last")],
    "cuda": [((1, 2), (31, 50), "contiguous"), ((1, 140), (5, 9), "channels_last"), ((1, 67), (2, 3), "channels_last")],
}

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


def vector_of(launch):
    """Channels that a thread moves together, channels last."""
    if isinstance(launch, emulated.Launch):
        return int(launch.function.split(", ")[2])
    return launch.constants["UNIT"]


def programs_of(launch):
    return launch.grid.blocks if isinstance(launch, emulated.Launch) else launch.programs


@pytest.mark.parametrize("dtype, case", IN_DTYPES, ids=lambda it: getattr(it, "name", str(it)))
def test_values_and_gradients(dtype, case, launched, impl):
    for channels, size, layout in INPUTS:
        check(impl, case, planes(case, *channels, *size, dtype), layout)
    assert len(launched) == 2 * len(INPUTS)
    assert {vector_of(launch) for launch in launched} == {1, 4 if dtype == torch.float32 else 8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_columns_in_vectors(case, dtype, impl):
    """Rows of the result are multiples of 16 bytes, forward or backward: CUDA's kernels make several at once."""
    for size in ((5, 16), (4, 10)):
        check(impl, case, planes(case, 1, 2, *size, dtype), "contiguous")


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
@pytest.mark.parametrize("last", [False, True])
def test_addresses_that_are_no_multiples(case, last, impl):
    """Maps that begin anywhere in their memory: vectors are taken only where they stand."""
    n, c, h, w = shape = (2, 8, 5, 8)
    x = planes(case, *shape, torch.float32)
    memory = torch.full((x.numel() + 1,), float("nan"), device=DEVICE)[1:]
    odd = memory.view(n, h, w, c).permute(0, 3, 1, 2) if last else memory.view(shape)
    odd.copy_(x)
    grad = torch.randn(case.published(x).shape, device=DEVICE)
    apart, together = (
        fused(impl, case, given, grad)
        for given in (odd, in_layout(x.to(DEVICE), "channels_last" if last else "contiguous"))
    )
    assert all(torch.equal(apart[name], together[name]) for name in apart)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_several_tiles(case, launched, impl):
    for channels, size, layout in TILES[impl]:
        check(impl, case, planes(case, *channels, *size, torch.float32), layout)
    assert all(programs_of(launch) > 1 for launch in launched)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_another_layout(case, layout, impl):
    x = in_layout(planes(case, 2, 8, 4, 5, torch.float32).to(DEVICE), layout)
    shape = case.published(x).shape
    grad = torch.randn(shape, device=DEVICE)
    other = "channels_last" if layout == "contiguous" else "contiguous"
    found = [fused(impl, case, x, in_layout(grad, form))["dx"] for form in (layout, other)]
    expanded = fused(impl, case, x, torch.ones(1, 1, 1, 1, device=DEVICE).expand(shape))["dx"]
    assert torch.equal(*found) and found[0].stride() == found[1].stride() == x.stride()
    want = both(case.published, x.double(), torch.ones(shape, dtype=torch.float64, device=DEVICE))["dx"]
    assert error(expanded, want) <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("case", [down(3), down(4), UP, *PADS[:3]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinity_reaches_only_what_is_made_of_it(case, layout, impl):
    """No weight of 0 touches it: 0 * inf would be NaN."""
    x = planes(case, 1, 4, 9, 12, torch.float32)
    x[0, 0, 0, 0] = x[0, 1, 3, 7] = x[0, 3, 8, 11] = float("inf")
    grad = torch.ones(case.published(x).shape)
    grad[0, 0, 0, 0] = grad[0, 1, 2, 3] = grad[0, 3, -1, -1] = float("inf")
    ours = on_host(fused(impl, case, in_layout(x.to(DEVICE), layout), grad.to(DEVICE)))
    want = both(case.published, x.double(), torch.ones_like(grad).double())
    assert torch.equal(ours["y"].isinf(), want["y"].isinf()) and not ours["y"].isnan().any()
    # torch's gradients multiply by zeros; those of which pixel is made of which are those of a one in place of infinity
    touched = both(case.published, x.double(), grad.isinf().double())["dx"] != 0
    assert torch.equal(ours["dx"].isinf(), touched) and not ours["dx"].isnan().any()


@pytest.mark.parametrize("size", [2, 9])
def test_padding_as_wide_as_the_plane(size, impl):
    """A pixel comes three times on each axis."""
    check(impl, pad(*(size - 1,) * 4), torch.randn(1, 2, size, size), "contiguous")


def test_padding_copies_every_bit(impl):
    x = torch.tensor([-0.0, 1e-40, 1e-45, -3e38], device=DEVICE).view(1, 1, 2, 2)
    y = kernels.reflection_pad2d(x, 1, impl=impl).cpu()
    want = torch.nn.functional.pad(x.cpu(), (1, 1, 1, 1), mode="reflect")
    assert torch.equal(y.view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize("case", [down(3), UP, PADS[0]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_second_derivatives(case, layout, launched, impl):
    results = []
    start = in_layout((planes(case, 1, 4, 5, 6, torch.float32) / 4).to(DEVICE), layout)
    for f, dtype in ((lambda x: case.ours(x, impl), torch.float32), (case.published, torch.float64)):
        x = start.to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(f(x).pow(4).sum(), x, create_graph=True)
        results += [first, *torch.autograd.grad(first.sin().sum(), x)]
    assert len(launched) == 4
    for ours, want in zip(results[:2], results[2:]):
        torch.testing.assert_close(ours.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_empty(launched, impl):
    for shape in ((0, 3, 4, 6), (2, 0, 4, 6)):
        x = torch.zeros(shape, device=DEVICE, requires_grad=True)
        y = kernels.blur_downsample(x, impl=impl)
        assert y.shape == (*shape[:2], 2, 3)
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape
    assert not launched
