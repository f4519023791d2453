"""The triton resample kernel on a GPU: what only a device has (streams, CUDA graphs, a
host that must not wait, maps of more than 2^31 elements)."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from support.gpu import behind_a_slow_writer, captured  # noqa: E402
from support.patches_cases import in_layout, randn  # noqa: E402
from support.resample_cases import PADS, UP, down, pad, planes  # noqa: E402
from support.resample_device import check  # noqa: E402

import kernels  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

CUT = [
    (down(3), (1, 128, 256, 256)),
    (down(3), (1, 256, 128, 128)),
    (UP, (1, 256, 64, 64)),
    (UP, (1, 128, 128, 128)),
    (PADS[0], (1, 256, 64, 64)),
    (PADS[1], (1, 3, 256, 256)),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case, size", CUT, ids=str)
def test_cut_layers(case, size, dtype, layout):
    check(case, planes(case, *size, dtype), layout)


def layers(layout="contiguous"):
    return [in_layout(randn(*size, seed=i, device="cuda"), layout).requires_grad_() for i, (_, size) in enumerate(CUT)]


def step(maps):
    """Every layer's output and gradient."""
    found = [case.ours(x, "triton") for (case, _), x in zip(CUT, maps)]
    return [*found, *torch.autograd.grad(sum(y.square().sum() for y in found), maps)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_results_repeat_bit_for_bit(layout):
    maps = layers(layout)
    assert all(torch.equal(a, b) for a, b in zip(step(maps), step(maps)))


def test_the_host_never_waits():
    maps = layers()
    step(maps)  # compiles, and copies the tables
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(maps)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_on_another_stream(layout):
    """Kernels queue behind the slow writer of their input on the stream that is current."""
    maps = layers(layout)
    want = step(maps)
    late = [torch.zeros_like(x).requires_grad_() for x in maps]

    @torch.no_grad()
    def write():
        for to, x in zip(late, maps):
            to.copy_(x)

    got = behind_a_slow_writer(write, lambda: step(late))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_tables_are_there_for_every_stream():
    """Also where the first launch of a spec, which copies them, is on a stream of its own."""
    x = torch.ones(1, 1, 37, 41, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)  # some 10 ms
        first = kernels.blur_downsample(x, impl="triton")
    second = kernels.blur_downsample(x, impl="triton")
    torch.cuda.synchronize()
    assert torch.equal(first, torch.ones_like(first)) and torch.equal(second, first)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_in_a_cuda_graph(layout):
    maps = layers(layout)
    graph, found = captured(lambda: step(maps))
    with torch.no_grad():
        for i, x in enumerate(maps):
            x.copy_(randn(*x.shape, seed=20 + i, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, step(maps)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_on_a_device_that_is_not_current():
    maps = layers()
    want = step(maps)
    with torch.cuda.device(0):
        got = step([x.detach().to("cuda:1").requires_grad_() for x in maps])
        assert torch.cuda.current_device() == 0
    assert all(a.device.index == 1 and torch.equal(a.to(b.device), b) for a, b in zip(got, want))


LARGE = [
    ((70000, 64, 32, 16), False),  # a huge batch of small planes
    ((1, 4, 27000, 27000), False),  # large planes, of which 32 bits span each
    ((1, 1, 46400, 46400), False),  # a plane that they do not
    ((1, 32, 8200, 8200), True),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", [down(3), pad(1, 1, 1, 1)], ids=lambda case: case.name)
@pytest.mark.parametrize("size, channels_last", LARGE, ids=str)
def test_more_than_2_to_31_elements(size, channels_last, case, monkeypatch):
    """Output and gradient at both ends, against those of a small piece there."""
    monkeypatch.undo()  # poisoned memory would double the time
    elements = size[0] * size[1] * size[2] * size[3]
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 10 * elements:
        pytest.skip(f"needs {10 * elements >> 30} GiB of free GPU memory")
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(size, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_().requires_grad_()
    y = case.ours(x, "triton")
    (dx,) = torch.autograd.grad(y, x, y.detach())
    side, sure = 16, 6  # the piece's, and what its own borders do not reach
    for first in (True, False):
        at = (slice(0, 1), slice(0, 1)) if first else (slice(-1, None), slice(-1, None))
        piece = (slice(0, side),) * 2 if first else (slice(-side, None),) * 2
        corner = (slice(0, sure),) * 2 if first else (slice(-sure, None),) * 2
        part = x[(*at, *piece)].detach().float().cpu().requires_grad_()
        want = case.published(part)
        (gradient,) = torch.autograd.grad(want, part, want.detach())
        got, got_dx = (t[at][(..., *corner)].detach().float().cpu() for t in (y, dx))
        torch.testing.assert_close(got, want[(..., *corner)].detach(), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(got_dx, gradient[(..., *corner)], rtol=2e-2, atol=2e-2)


def test_auto_takes_triton():
    x = randn(1, 4, 8, 8, device="cuda")
    assert torch.equal(kernels.blur_upsample(x), kernels.blur_upsample(x, impl="triton"))
