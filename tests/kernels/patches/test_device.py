"""What the patches kernels for GPUs must compute: Triton's in its interpreter (TRITON_INTERPRET=1), CUDA's in the
emulation, or both on a GPU."""

from __future__ import annotations

import pytest
import torch
from support import emulated
from support.device_numerics import DEVICE
from support.patches_cases import LAYOUTS, SIZES, check_gradient, exact, in_layout, randn, some_ids

import kernels
from kernels import backends
from kernels._layout import is_channels_last
from kernels.patches.spec import layout_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [case for case in SIZES if case[1] < 300] + [((1, 5, 11, 13), 150)]

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


def maps_of(dtype, layout):
    return [in_layout(randn(*s, dtype=dtype, seed=i, device=DEVICE), layout) for i, (s, _) in enumerate(SIZES)]


def names_and_maps(launched):
    """Of every launch its name, and how many maps it serves."""
    maps = [it.numbers["channels"] if isinstance(it, emulated.Launch) else it.args[0] for it in launched]
    return [(launch.name, len(of)) for launch, of in zip(launched, maps)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(dtype, layout, launched, impl, launcher):
    maps = [x.requires_grad_() for x in maps_of(dtype, layout)]
    ids = [some_ids(x, count) for x, (_, count) in zip(maps, SIZES)]
    patches, _ = kernels.sample_patches(maps, ids=ids, impl=impl)
    grads = [randn(*rows.shape, dtype=dtype, seed=9, device=DEVICE) for rows in patches]
    found = torch.autograd.grad(patches, maps, grads)
    assert names_and_maps(launched) == [("gather", len(maps)), ("scatter", len(maps))]
    # the interpreter cuts float32 to bfloat16 instead of rounding it
    roundings = 1.0 if dtype == torch.bfloat16 and impl == "triton" and backends.interpreting() else 0.5
    for x, at, rows, grad, dx in zip(maps, ids, patches, grads, found):
        want, want_dx = exact(x, at, grad)
        assert rows.dtype == dtype and torch.equal(rows.double(), want)
        check_gradient(dx, want_dx, x, roundings)
        assert is_channels_last(dx) == is_channels_last(x)
        last = "channels_last" if is_channels_last(x) else ""
        total = in_layout(randn(*x.shape, dtype=dtype, seed=5, device=DEVICE), last)
        sum_ = total.double() + want_dx
        launcher.add(total, grad, at)
        check_gradient(total, sum_, x, roundings)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drawn_positions(dtype, impl):
    """Those of a draw come once each: the kernel that does not look for repetitions."""
    maps = [x.requires_grad_() for x in maps_of(dtype, "contiguous")[:3]]
    generator = torch.Generator().manual_seed(3)  # on the host, whatever the maps' device
    patches, ids = kernels.sample_patches(maps, 20, generator=generator, impl=impl)
    grads = [randn(*rows.shape, dtype=dtype, seed=2, device=DEVICE) for rows in patches]
    for x, at, rows, grad, dx in zip(maps, ids, patches, grads, torch.autograd.grad(patches, maps, grads)):
        assert at.device == x.device
        want, want_dx = exact(x, at, grad)
        assert torch.equal(rows.double(), want) and torch.equal(dx.double(), want_dx)


def test_more_maps_than_a_launch_takes_and_several_dtypes(launched, impl):
    maps = [randn(1, 3, 4, 5, seed=i, device=DEVICE).requires_grad_() for i in range(11)]
    maps += [randn(1, 3, 4, 5, dtype=torch.bfloat16, device=DEVICE).requires_grad_()]
    patches, ids = kernels.sample_patches(maps, 7, impl=impl)
    assert names_and_maps(launched) == [("gather", 8), ("gather", 3), ("gather", 1)]
    grads = torch.autograd.grad([rows.sum() for rows in patches], maps)
    for x, at, rows, dx in zip(maps, ids, patches, grads):
        want, want_dx = exact(x, at, torch.ones_like(rows))
        assert torch.equal(rows.double(), want) and torch.equal(dx.double(), want_dx)


@pytest.mark.parametrize("size", [(2, 5, 40), (2, 5, 3, 4, 5)])
@pytest.mark.parametrize("last", [False, True])
def test_other_numbers_of_dimensions(size, last, impl):
    x = randn(*size, device=DEVICE)
    x = (x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x).requires_grad_()
    ids = torch.tensor([0, 7, 7, 21], device=DEVICE)
    (rows,), _ = kernels.sample_patches([x], ids=[ids], impl=impl)
    (dx,) = torch.autograd.grad(rows.sum(), x)
    want, want_dx = exact(x, ids, torch.ones_like(rows))
    assert torch.equal(rows.double(), want) and torch.equal(dx.double(), want_dx) and dx.stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_addresses_that_are_no_multiples(dtype, impl, launcher):
    """Maps and gradients that begin anywhere in their memory: vectors are taken only where they stand."""
    x = randn(2 * 8 * 12 + 1, dtype=dtype, device=DEVICE)[1:].view(2, 12, 8).movedim(2, 1)
    ids = some_ids(x, 9)
    (rows,) = launcher.forward([x], [ids])
    grad = randn(2 * 9 * 8 + 1, dtype=dtype, seed=3, device=DEVICE)[1:].view(2, 9, 8)
    (dx,) = launcher.backward([grad], [ids], [layout_of(x)], False)
    want, want_dx = exact(x, ids, grad)
    assert torch.equal(rows.double(), want)
    check_gradient(dx, want_dx, x, 1.0 if impl == "triton" and backends.interpreting() else 0.5)


def test_positions_outside_read_and_write_nothing(launcher):
    x, ids = randn(1, 5, 4, 4, device=DEVICE), torch.tensor([3, 16, -1, 1 << 40, 15], device=DEVICE)
    (rows,) = launcher.forward([x], [ids])
    assert rows.isnan().all(2).tolist() == [[False, True, True, True, False]]
    grad = torch.ones(1, 5, 5, device=DEVICE)
    (dx,) = launcher.backward([grad], [ids], [layout_of(x)], False)
    want = torch.zeros(16, device=DEVICE)
    want[3] = want[15] = 1
    assert torch.equal(dx.flatten(2), want.expand(1, 5, 16))


def test_rows_of_infinity_stay_where_they_are(launcher):
    grad = torch.zeros(1, 3, 2, device=DEVICE)
    grad[0, 1] = float("inf")
    form = layout_of(torch.zeros(1, 2, 2, 2))
    (dx,) = launcher.backward([grad], [torch.tensor([0, 2, 0], device=DEVICE)], [form], False)
    assert torch.isinf(dx).sum() == 2 and not dx.isnan().any()


def test_repeats_are_summed_in_their_order(launcher):
    """Bit for bit what adding one after the other in float32 gives, across all tiles of patches."""
    x, ids = randn(1, 3, 3, 3, device=DEVICE), some_ids(randn(1, 3, 3, 3, device=DEVICE), 150)
    grad = randn(1, 150, 3, seed=4, device=DEVICE)
    (dx,) = launcher.backward([grad], [ids], [layout_of(x)], False)
    want = torch.zeros(3, 9, device=DEVICE)
    for p, at in enumerate(ids.tolist()):
        want[:, at] += grad[0, p]
    assert torch.equal(dx.view(3, 9), want)


@pytest.mark.parametrize("shared", [False, True])
def test_tap(shared, launched, impl):
    x = randn(2, 5, 6, 6, device=DEVICE).requires_grad_()
    ids = torch.tensor([3, 3, 35, 0], device=DEVICE)
    t, rows = kernels.tap_patches(x * 1.0, ids, impl=impl)
    total = (t + x * 2.0 if shared else t * 3.0).square().sum() + rows.square().sum()
    (dx,) = torch.autograd.grad(total, x)
    assert [launch.name for launch in launched] == ["gather", "scatter"]
    _, spread = exact(x, ids, 2 * rows.detach())
    torch.testing.assert_close(dx.double(), 18 * x.detach().double() + spread, rtol=1e-5, atol=1e-5)


def test_empty(launched, impl):
    maps = [torch.zeros(0, 3, 4, 4, device=DEVICE), torch.zeros(2, 0, 4, 4, device=DEVICE)]
    maps = [x.requires_grad_() for x in maps]
    patches, _ = kernels.sample_patches(maps, 5, impl=impl)
    for x, dx in zip(maps, torch.autograd.grad(sum(rows.sum() for rows in patches), maps)):
        assert dx.shape == x.shape
    assert not launched
