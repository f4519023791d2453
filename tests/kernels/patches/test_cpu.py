"""The C++ patches operators against float64, on every instruction set this machine runs."""

import pytest
import torch
from support.patches_cases import LAYOUTS, SIZES, check_gradient, exact, in_layout, randn, some_ids

import kernels
from kernels._layout import is_channels_last
from kernels.patches import launch_cpu
from kernels.patches.spec import layout_of

pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(isa, dtype, layout):
    """Every size in one call, positions repeated."""
    maps = [in_layout(randn(*size, dtype=dtype, seed=i), layout).requires_grad_() for i, (size, _) in enumerate(SIZES)]
    ids = [some_ids(x, count) for x, (_, count) in zip(maps, SIZES)]
    patches, back = kernels.sample_patches(maps, ids=ids, impl="cpu")
    grads = [randn(*rows.shape, dtype=dtype, seed=9) for rows in patches]
    found = torch.autograd.grad(patches, maps, grads)
    for x, at, rows, grad, dx, returned in zip(maps, ids, patches, grads, found, back):
        want, want_dx = exact(x, at, grad)
        assert returned is at and rows.dtype == dtype and rows.is_contiguous()
        assert torch.equal(rows.double(), want)
        check_gradient(dx, want_dx, x)
        assert is_channels_last(dx) == is_channels_last(x)
        total = in_layout(randn(*x.shape, dtype=dtype, seed=5), "channels_last" if is_channels_last(x) else "")
        sum_ = total.double() + want_dx
        launch_cpu.add(total, grad, at)
        check_gradient(total, sum_, x)


@pytest.mark.parametrize("size", [(2, 5, 40), (2, 5, 3, 4, 5), (1, 3, 2, 1, 4, 3)])
@pytest.mark.parametrize("last", [False, True])
def test_other_numbers_of_dimensions(size, last):
    x = randn(*size)
    x = (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x).requires_grad_()
    ids = some_ids(x, 1).new_tensor([0, 7, 7, 21])
    (rows,), _ = kernels.sample_patches([x], ids=[ids], impl="cpu")
    grad = randn(*rows.shape, seed=2)
    (dx,) = torch.autograd.grad(rows, x, grad)
    want, want_dx = exact(x, ids, grad)
    assert torch.equal(rows.double(), want) and dx.stride() == x.stride()
    check_gradient(dx, want_dx, x)


def test_maps_no_two_strides_lead_over():
    x = randn(2, 3, 6, 6, 6)[:, :, 1:-1, 1:-1, 1:-1].requires_grad_()
    ids = torch.tensor([0, 63, 17, 17])
    (rows,), _ = kernels.sample_patches([x], ids=[ids], impl="cpu")
    want, want_dx = exact(x, ids, torch.ones_like(rows))
    assert torch.equal(rows.double(), want)
    assert torch.equal(torch.autograd.grad(rows.sum(), x)[0].double(), want_dx)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_repeated_rows_are_summed_in_float32(isa, layout):
    """In bfloat16 1 + 2^-8 is 1: added one by one, 255 of 256 rows would be lost."""
    x = in_layout(torch.zeros(1, 20, 4, 4, dtype=torch.bfloat16), layout)
    grad = torch.full((1, 257, 20), 2.0**-8, dtype=torch.bfloat16)
    grad[:, 0] = 1
    ids = torch.full((257,), 5)
    (dx,) = launch_cpu.backward([grad], [ids], [layout_of(x)], False)
    assert (dx.flatten(2)[..., 5] == 2).all() and dx.sum() == 40


def test_rows_of_infinity_stay_where_they_are():
    grad = torch.zeros(1, 3, 2)
    grad[0, 1] = float("inf")
    (dx,) = launch_cpu.backward([grad], [torch.tensor([0, 2, 0])], [layout_of(torch.zeros(1, 2, 2, 2))], False)
    assert torch.isinf(dx).sum() == 2 and not dx.isnan().any()


def test_empty_batches_and_channels():
    maps = [torch.zeros(0, 3, 4, 4, requires_grad=True), torch.zeros(2, 0, 4, 4, requires_grad=True)]
    patches, _ = kernels.sample_patches(maps, 5, impl="cpu")
    assert [tuple(rows.shape) for rows in patches] == [(0, 5, 3), (2, 5, 0)]
    for x, dx in zip(maps, torch.autograd.grad(sum(rows.sum() for rows in patches), maps)):
        assert dx.shape == x.shape


def test_many_repeats_over_a_large_map():
    """The hash table of positions with collisions of every kind."""
    x = randn(1, 2, 300, 300)
    ids = torch.cat([torch.arange(0, 90000, 2), torch.arange(0, 90000, 3)])
    grad = randn(1, len(ids), 2, seed=3)
    (dx,) = launch_cpu.backward([grad], [ids], [layout_of(x)], False)
    want = torch.zeros(1, 2, 90000).index_add_(2, ids, grad.transpose(1, 2)).view_as(x)
    assert torch.equal(dx, want)


@pytest.mark.parametrize("bad", [-1, 30, 1 << 40])
def test_positions_that_change_before_the_backward_write_nothing(bad):
    x, ids = torch.randn(1, 2, 6, 5, requires_grad=True), torch.tensor([3, 7])
    shared = ids.numpy()  # autograd does not see what is written here
    (patches,), _ = kernels.sample_patches([x], ids=[ids], impl="cpu")
    passed, more = kernels.tap_patches(x, ids, impl="cpu")
    shared[1] = bad
    for result in (patches.sum(), passed.sum() + more.sum()):
        with pytest.raises(IndexError, match="a position outside its map"):
            result.backward()
