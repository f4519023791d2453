"""The triton norm kernels on a GPU: what only a device has (streams, CUDA graphs, a second
device, tensors of more than 2^31 elements)."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from support.gpu import behind_a_slow_writer, captured  # noqa: E402
from support.norm_device import check, operator, parameters, randn, residual_of  # noqa: E402

import kernels  # noqa: E402
from kernels.norm import launch_triton, reference  # noqa: E402
from kernels.norm.spec import INSTANCE, LAYER_STD, Spec  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

SHAPES = [(1, 64, 256, 256), (1, 256, 64, 64), (1, 128, 127, 127), (8, 512, 16, 16), (1, 8, 1024, 1024)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("form", ["plain", "affine", "sample", "layer"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_network_shapes(shape, form, channels_last, dtype):
    x = randn(*shape, dtype=dtype, channels_last=channels_last) * 2 + 1
    # no kink: among millions of elements some stand so close to it that float64 and float32 disagree on the side
    op = operator(form, activation="none" if form == "plain" else "tanh", padding=1)
    check(op, x, *parameters(form, *shape[:2]), residual_of("strided", x))


def run(x, scale, shift):
    """Forward and backward on both ways, one and two launches: everything that comes out."""
    found = []
    for form, padding in ((INSTANCE, 1), (LAYER_STD, 0)):
        spec = Spec(form, 1e-5, 0.0, 1, 0.2, padding)
        y, stats = launch_triton.forward(x, scale, shift, x, spec)
        found += [y, stats, *launch_triton.backward(y, x, scale, shift, stats, padding > 0, spec)]
    return [t for t in found if t is not None]


INPUTS = [(2, 16, 48, 64), (1, 8, 256, 256)]


@pytest.mark.parametrize("shape", INPUTS, ids=str)
def test_on_another_stream(shape):
    """Kernels queue behind the slow writer of their input on the stream that is current, not on the default one."""
    x, (scale, shift) = randn(*shape), parameters("affine", *shape[:2])
    want = run(x, scale, shift)
    late = torch.zeros_like(x)
    got = behind_a_slow_writer(lambda: late.copy_(x), lambda: run(late, scale, shift))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("shape", INPUTS, ids=str)
def test_in_a_cuda_graph(shape):
    x, (scale, shift) = randn(*shape), parameters("affine", *shape[:2])
    held = x.clone()
    graph, found = captured(lambda: run(held, scale, shift))
    for seed in (1, 2):
        fresh = randn(*shape, seed=seed) * 3 - 1
        held.copy_(fresh)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, run(fresh, scale, shift)))


def test_autograd_in_a_cuda_graph():
    x = randn(1, 16, 64, 64).requires_grad_()
    op = operator("plain", activation="relu", padding=1)
    gradient = torch.ones(1, 16, 66, 66, device="cuda")

    def step():
        return torch.autograd.grad(op(x, None, None, impl="triton"), x, gradient)[0]

    graph, found = captured(step)
    with torch.no_grad():
        x.copy_(randn(1, 16, 64, 64, seed=3))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, step())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_on_a_device_that_is_not_current():
    x, (scale, shift) = randn(2, 16, 48, 64), parameters("affine", 2, 16)
    want = run(x, scale, shift)
    with torch.cuda.device(0):
        got = run(*(t.to("cuda:1") for t in (x, scale, shift)))
        assert torch.cuda.current_device() == 0
    assert all(a.device.index == 1 and torch.equal(a.to(b.device), b) for a, b in zip(got, want))


LARGE = [((2**31 // 4096 // 64 + 8, 64, 64, 64), False), ((3, 8, 10000, 10000), False), ((1, 32, 8200, 8200), True)]


@pytest.mark.slow
@pytest.mark.parametrize("shape,channels_last", LARGE, ids=str)
def test_more_than_2_to_31_elements(shape, channels_last, monkeypatch):
    """Small planes of a huge batch, huge planes, one sample that 32 bits do not span; ends against the reference."""
    monkeypatch.undo()  # poisoned memory would double the time
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 10 * elements:
        pytest.skip(f"needs {10 * elements >> 30} GiB of free GPU memory")
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form).normal_()
    spec = Spec(INSTANCE, 1e-5, 0.0, 1, 0.2, 0)
    y, stats = launch_triton.forward(x, None, None, None, spec)
    dx = launch_triton.backward(x, x, None, None, stats, False, spec)[0]
    for n, c in ((0, 0), (shape[0] - 1, shape[1] - 1)):
        part = x[n : n + 1, c : c + 1].contiguous().requires_grad_()
        want = reference.norm(part, None, None, None, spec)
        (gradient,) = torch.autograd.grad(want, part, part.detach())
        torch.testing.assert_close(y[n : n + 1, c : c + 1], want.detach(), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(dx[n : n + 1, c : c + 1], gradient, rtol=2e-2, atol=2e-2)


def test_auto_takes_triton():
    x = randn(1, 4, 8, 8)
    assert torch.equal(kernels.instance_norm(x), kernels.instance_norm(x, impl="triton"))
