"""The C++ resample operators against float64, on every instruction set this machine runs."""

import pytest
import torch
from support.numerics import check_rule, error
from support.patches_cases import LAYOUTS, in_layout
from support.resample_cases import CASES, CHANNELS, PADS, PLANES, UP, down, planes

import kernels
from kernels._layout import is_channels_last

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def both(f, x, grad) -> dict[str, torch.Tensor]:
    x = x.detach().requires_grad_()
    y = f(x)
    return {"y": y.detach(), "dx": torch.autograd.grad(y, x, grad)[0]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(isa, case, dtype):
    for n, c in CHANNELS:
        for height, width in PLANES:
            x = planes(case, n, c, height, width, dtype)
            exact_y = case.published(x.double())
            grad = torch.randn(exact_y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            exact = both(case.published, x.double(), grad.double())
            torchs = both(case.published, x, grad)
            for layout in LAYOUTS:
                given = in_layout(x, layout)
                ours = both(lambda x: case.ours(x, "cpu"), given, grad)
                what = (case.name, tuple(x.shape), layout)
                check_rule(ours, torchs, exact, dtype, what)
                assert is_channels_last(ours["y"]) == is_channels_last(given) or ours["y"].is_contiguous(), what


@pytest.mark.parametrize("case", [down(3), UP, PADS[1]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_another_layout(case, layout):
    x = in_layout(planes(case, 2, 20, 9, 12, torch.float32), layout)
    y = case.ours(x, "cpu")
    grad = torch.randn(y.shape)
    other = "channels_last" if layout == "contiguous" else "contiguous"
    found = [both(lambda x: case.ours(x, "cpu"), x, in_layout(grad, form))["dx"] for form in (layout, other)]
    expanded = both(lambda x: case.ours(x, "cpu"), x, torch.ones(1, 1, 1, 1).expand_as(y))["dx"]
    assert torch.equal(*found) and found[0].stride() == found[1].stride() == x.stride()
    want = both(case.published, x.double(), torch.ones(y.shape, dtype=torch.float64))["dx"]
    assert error(expanded, want) <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_infinity_reaches_only_what_is_made_of_it(isa, case, layout):
    """No weight of 0 touches it: 0 * inf would be NaN."""
    for at in ((0, 0), (3, 30), (8, 17)):
        x = planes(case, 1, 20, 9, 40, torch.float32)
        x[0, 3, at[0], at[1]] = float("inf")
        y = case.ours(in_layout(x, layout), "cpu")
        assert torch.equal(y.isinf(), case.published(x.double()).isinf()) and not y.isnan().any()


def test_wide_planes_and_many_rows():
    """Every loop over columns more than once, and planes cut between threads."""
    for case in (down(3), UP, PADS[1]):
        x = planes(case, 1, 2, 70, 5000, torch.float32)
        grad = torch.ones(case.published(x).shape)
        check_rule(
            both(lambda x: case.ours(x, "cpu"), x, grad),
            both(case.published, x, grad),
            both(case.published, x.double(), grad.double()),
            torch.float32,
            case.name,
        )


def test_padding_as_wide_as_the_plane():
    for size in (2, 3, 9):
        x = torch.randn(1, 2, size, size, dtype=torch.float32)
        sides = (size - 1,) * 4
        grad = torch.ones(1, 2, 3 * size - 2, 3 * size - 2)
        ours = both(lambda x: kernels.reflection_pad2d(x, sides), x, grad)
        want = both(lambda x: torch.nn.functional.pad(x, sides, mode="reflect"), x.double(), grad.double())
        assert torch.equal(ours["y"].double(), want["y"]) and error(ours["dx"], want["dx"]) == 0


def test_empty_batches_and_channels():
    for shape in ((0, 3, 4, 6), (2, 0, 4, 6)):
        x = torch.zeros(shape, requires_grad=True)
        y = kernels.blur_downsample(x, impl="cpu")
        assert y.shape == (*shape[:2], 2, 3)
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape
