"""The triton patches kernels on a GPU: what only a device has (streams, CUDA graphs, a
host that must not wait)."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from support.gpu import behind_a_slow_writer, captured  # noqa: E402
from support.patches_cases import CUT, in_layout, randn  # noqa: E402

import kernels  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]


def layers(layout="contiguous", dtype=torch.float32):
    maps = [in_layout(randn(*size, dtype=dtype, seed=i, device="cuda"), layout) for i, size in enumerate(CUT)]
    return [x.requires_grad_() for x in maps]


def step(maps, ids=None, generator=None, impl="triton"):
    """Patches, positions and every map's gradient; the second layer is tapped."""
    patches, ids = kernels.sample_patches(maps, ids=ids, generator=generator, impl=impl)
    t, rows = kernels.tap_patches(maps[1] * 1.0, ids[1], impl=impl)
    total = sum(p.square().sum() for p in (*patches, rows)) + (t * 2.0).sum()
    return [*patches, rows, *ids, *torch.autograd.grad(total, maps)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cut_layers_equal_the_reference(layout, dtype):
    maps = layers(layout, dtype)
    got = step(maps)
    want = step(maps, ids=got[6:11], impl="reference")
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(got, step(maps, ids=got[6:11])))


def test_the_host_never_waits():
    maps, generator = layers(), torch.Generator("cuda")
    step(maps, generator=generator)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids = step(maps, generator=generator)[6:11]
        step(maps, ids=ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_on_another_stream():
    """Kernels queue behind the slow writer of their input on the stream that is current."""
    maps = layers()
    want = step(maps)
    ids, late = want[6:11], [torch.zeros_like(x).requires_grad_() for x in maps]

    @torch.no_grad()
    def write():
        for to, x in zip(late, maps):
            to.copy_(x)

    got = behind_a_slow_writer(write, lambda: step(late, ids=ids))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_in_a_cuda_graph():
    maps = layers()
    ids = step(maps)[6:11]
    graph, found = captured(lambda: step(maps, ids=ids))
    with torch.no_grad():
        for i, x in enumerate(maps):
            x.copy_(randn(*x.shape, seed=20 + i, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, step(maps, ids=ids)))


def test_the_tap_is_in_place_here_too():
    seen = {}
    a = layers()[1] * 1.0
    a.register_hook(lambda g: seen.update(after=g.data_ptr()))
    t, rows = kernels.tap_patches(a, torch.arange(256, device="cuda"))
    t.register_hook(lambda g: seen.update(before=g.data_ptr()))
    ((t * 2.0).square().sum() + rows.sum()).backward()
    assert seen["before"] == seen["after"]
