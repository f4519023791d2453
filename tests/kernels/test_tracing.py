"""What records calls (jit.trace, make_fx, torch.export, ONNX, add_graph, torch.fx): every public operator, and a fused
network, gives the right numbers in what was recorded, or raises."""

from __future__ import annotations

import io
import warnings

import onnxruntime
import pytest
import torch
from support.guard_cases import CASES, MONCE, Case, check, every, every_gradient
from support.turns import taking_turns
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import kernels

Tensor = torch.Tensor

pytestmark = pytest.mark.filterwarnings("ignore")  # torch announces the end of what is tested here, at every call


class Module(nn.Module):
    def __init__(self, cases: list[Case]):
        super().__init__()
        self.cases = cases

    def forward(self, *tensors: Tensor):
        found = []
        for case in self.cases:
            found.append(case.run("auto", *tensors[: len(case.shapes)]))
            tensors = tensors[len(case.shapes) :]
        return tuple(found)


def together(names: list[str]) -> tuple[Module, list[Tensor], list[Tensor]]:
    """These operators as one module, its tensors, and other ones."""
    cases = [CASES[name] for name in names]
    return Module(cases), *([t for case in cases for t in case.tensors(seed)] for seed in (0, 1))


@every
@pytest.mark.parametrize("grad_mode", [True, False])
def test_jit_trace(case, grad_mode):
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(lambda *t: case.run("auto", *t), tuple(case.tensors()))
    for other in (case.tensors(1), case.tensors(2, larger=4)):
        check(traced(*other), case.run("auto", *other))


FX = [{}, {"pre_dispatch": True}, {"tracing_mode": "symbolic"}]


@pytest.mark.parametrize("name, options", taking_turns(3, CASES, FX), ids=str)
def test_make_fx(name, options):
    case = CASES[name]
    other = case.tensors(1)
    graph = make_fx(lambda *t: case.run("auto", *t), **options)(*case.tensors())
    assert "fused_i2i" not in graph.code
    check(graph(*other), case.run("auto", *other))


@every_gradient
def test_make_fx_of_a_backward(case):
    def gradients(*tensors):
        leaves = case.leaves([t.clone() for t in tensors])
        return case.gradients(case.run("auto", *leaves).square().sum(), leaves)

    other = case.tensors(1)
    for got, want in zip(make_fx(gradients)(*case.tensors())(*other), gradients(*other)):
        check(got, want, 1e-3)


# Strict or not is how torch finds the graph, sizes are what is in it: each of both by default.
@pytest.mark.parametrize("strict", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_torch_export(strict):
    module, tensors, other = together(list(CASES))
    graph = torch.export.export(module, tuple(tensors), strict=strict)
    assert "fused_i2i" not in str(graph.graph)
    for got, want in zip(graph.module()(*other), module(*other)):
        check(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_torch_export_of_any_size(strict):
    names = list(CASES)
    module, tensors, _ = together(names)
    sizes = [{d: torch.export.Dim.DYNAMIC for d, size in enumerate(t.shape) if size > 4} for t in tensors]
    graph = torch.export.export(module, tuple(tensors), strict=strict, dynamic_shapes=(tuple(sizes),))
    other = [t for name in CASES for t in CASES[name].tensors(3, larger=5)]
    for got, want in zip(graph.module()(*other), module(*other)):
        check(got, want)


def run_onnx(model: bytes, tensors: list[Tensor]) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {given.name: t.numpy() for given, t in zip(session.get_inputs(), tensors)}
    return [torch.from_numpy(y) for y in session.run(None, feed)]


ALL_BUT = [name for name in CASES if name != MONCE]


@pytest.mark.parametrize("names, optimize", [(ALL_BUT, True), ([MONCE], False)], ids=["others", MONCE])
def test_onnx(names, optimize):
    """monce's floor of 1e-8 counts as nothing to the exporter's optimiser, which removes it."""
    module, tensors, other = together(names)
    file = io.BytesIO()
    torch.onnx.export(module, tuple(tensors), file, dynamo=True, verbose=False, optimize=optimize)
    for got, want in zip(run_onnx(file.getvalue(), other), module(*other)):
        check(got, want)


def test_onnx_on_torchscript():
    module, tensors, _ = together(list(CASES))
    axes = {f"t{i}": {d: f"t{i}_{d}" for d, size in enumerate(t.shape) if size > 4} for i, t in enumerate(tensors)}
    file = io.BytesIO()
    torch.onnx.export(
        module, tuple(tensors), file, dynamo=False, opset_version=18, input_names=list(axes), dynamic_axes=axes
    )
    for larger in (0, 5):
        other = [t for name in CASES for t in CASES[name].tensors(1, larger=larger)]
        for got, want in zip(run_onnx(file.getvalue(), other), module(*other)):
            check(got, want)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU(),
        nn.ReflectionPad2d(1),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.LeakyReLU(0.2),
        kernels.BlurDownsample(4),
        kernels.MunitLayerNorm(4),
        kernels.BlurUpsample(4),
    ).eval()


@pytest.fixture(scope="module")
def plain_and_fused():
    plain = network()
    fused = kernels.fuse(network())
    fused.load_state_dict(plain.state_dict())
    return plain, fused


WAYS = ["trace", "trace in training", "make_fx", "export", "onnx", "add_graph", "vmap", "fake"]


@pytest.mark.parametrize("way", WAYS)
def test_a_fused_network(plain_and_fused, way, tmp_path):
    plain, fused = plain_and_fused
    x, other = torch.randn(1, 3, 16, 16), torch.randn(1, 3, 16, 16)
    want = plain(other).detach()
    if way == "trace":
        got = torch.jit.trace(fused, x)(other)
    elif way == "trace in training":
        got = torch.jit.trace(kernels.fuse(network().train()), x, check_trace=False)(other)
        want = network().train()(other).detach()
    elif way == "make_fx":
        got = make_fx(fused)(x)(other)
    elif way == "export":
        got = torch.export.export(fused, (x,)).module()(other)
    elif way == "onnx":
        file = io.BytesIO()
        torch.onnx.export(fused, (x,), file, dynamo=True, verbose=False)
        (got,) = run_onnx(file.getvalue(), [other])
    elif way == "add_graph":
        tensorboard = pytest.importorskip("torch.utils.tensorboard")
        with tensorboard.SummaryWriter(tmp_path) as writer:
            writer.add_graph(fused, x)
        got = fused(other)
    elif way == "vmap":
        got = torch.func.vmap(fused)(torch.stack((x, other)))[1]
    else:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert fused(mode.from_tensor(x)).shape == want.shape
        got = fused(other)
    check(got.detach(), want)


def test_tools_that_read_source_say_what_to_do_instead():
    fused = kernels.fuse(network())
    with pytest.raises(TypeError, match="x: got a Proxy of torch.fx.*before kernels.fuse"):
        torch.fx.symbolic_trace(lambda x: kernels.instance_norm(x))
    with pytest.raises(TypeError, match="torch.jit.script.*before kernels.fuse.*torch.jit.trace"):
        torch.jit.script(fused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(fused, torch.randn(1, 3, 16, 16))
