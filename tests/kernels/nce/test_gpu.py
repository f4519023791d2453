"""The kernels of patch_nce_loss on a GPU: what only a device has (streams, CUDA graphs, the number of launches)."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from support.gpu import behind_a_slow_writer, captured  # noqa: E402
from support.nce_device_numerics import check, inputs, leaves  # noqa: E402

from kernels.nce import patch_nce_loss  # noqa: E402
from kernels.nce.spec import Layer, Needs, Spec  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

SPEC = Spec(0.07, True, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("negatives", [None, (1000,), (4, 300)])
@pytest.mark.parametrize("batch", [1, 4])
def test_network_shapes(batch, negatives, normalize, dtype, impl):
    if negatives and len(negatives) == 2:
        negatives = (batch, negatives[1])
    check(impl, inputs((batch, 256, 256), negatives, "both", dtype), normalize=normalize)


def run(launcher, layers):
    """Forward and backward of all layers: everything that comes out."""
    loss, stats, dq_unscaled = launcher.forward(layers, SPEC, [True] * len(layers))
    needs = [Needs(True, True, False, False)] * len(layers)
    grads = launcher.backward(torch.ones_like(loss), layers, stats, dq_unscaled, needs, SPEC)
    return [loss, stats, *(g for four in grads for g in four if g is not None)]


def five(seed=0):
    return [Layer(*inputs((1, 256, 256), seed=seed + 10 * i).values()) for i in range(5)]


def test_on_another_stream(launcher):
    """Kernels queue behind the slow writer of their input on the stream that is current, not on the default one."""
    layers = five()
    want = run(launcher, layers)
    late = [layer._replace(q=torch.zeros_like(layer.q)) for layer in layers]

    def write():
        for mine, layer in zip(late, layers):
            mine.q.copy_(layer.q)

    got = behind_a_slow_writer(write, lambda: run(launcher, late))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_in_a_cuda_graph(launcher):
    held = five()
    graph, found = captured(lambda: run(launcher, held))
    for seed in (100, 200):
        fresh = five(seed)
        for mine, layer in zip(held, fresh):
            mine.q.copy_(layer.q)
            mine.k.copy_(layer.k)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, run(launcher, fresh)))


def test_autograd_in_a_cuda_graph(impl):
    own = [leaves(inputs((1, 64, 128), seed=10 * i)) for i in range(3)]
    q, k = ([t[name] for t in own] for name in "qk")

    def step():
        return torch.autograd.grad(patch_nce_loss(q, k, normalize=True, impl=impl), q)

    graph, found = captured(step)
    with torch.no_grad():
        for t in (*q, *k):
            t.copy_(torch.randn_like(t))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, step()))


def test_one_kernel_for_five_layers(launcher, impl):
    """As the profiler counts them, forward and backward of q."""
    layers = five()
    loss, stats, dq_unscaled = launcher.forward(layers, SPEC, [True] * 5)
    needs = [Needs(True, False, False, False)] * 5
    grad = torch.ones_like(loss)
    launcher.backward(grad, layers, stats, dq_unscaled, needs, SPEC)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        launcher.forward(layers, SPEC, [True] * 5)
        launcher.backward(grad, layers, stats, dq_unscaled, needs, SPEC)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.name.startswith("nce_") or event.name == "kernel"]
    assert names == (["nce_forward", "nce_backward_rows"] if impl == "triton" else ["kernel"] * 2), names


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_on_a_device_that_is_not_current(launcher):
    layers = five()
    want = run(launcher, layers)
    with torch.cuda.device(0):
        got = run(launcher, [Layer(*(None if t is None else t.to("cuda:1") for t in layer)) for layer in layers])
        assert torch.cuda.current_device() == 0
    assert all(a.device.index == 1 and torch.equal(a.to(b.device), b) for a, b in zip(got, want))


@pytest.mark.slow
def test_a_bank_of_more_than_2_to_31_elements(launcher, monkeypatch):
    monkeypatch.undo()  # poisoned memory would double the time
    count, width = 2**23 + 64, 256
    if torch.cuda.mem_get_info()[0] < 3 * count * width * 2:
        pytest.skip("needs 12 GiB of free GPU memory")
    bank = torch.empty(count, width, dtype=torch.bfloat16, device="cuda").normal_()
    q = torch.randn(1, 16, width, device="cuda").to(torch.bfloat16)
    loss, stats, _ = launcher.forward([Layer(q, q, bank, None, None)], SPEC, [False])
    q_hat = torch.nn.functional.normalize(q[0].float(), dim=-1)
    parts = [q_hat @ torch.nn.functional.normalize(b.float(), dim=-1).T / 0.07 for b in bank.split(1 << 18)]
    want = torch.stack([p.logsumexp(-1) for p in parts]).logsumexp(0)
    torch.testing.assert_close(stats[0], want, rtol=1e-4, atol=1e-4)


def test_auto_takes_cuda():
    given = inputs((1, 20, 32))
    losses = [patch_nce_loss(given["q"], given["k"], impl=impl) for impl in ("auto", "cuda")]
    assert torch.equal(*losses)
