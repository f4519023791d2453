"""Tensors that a kernel may not be handed by address, and what records, batches or differentiates calls: every public
operator gives the right numbers there or raises, and never a segmentation fault, garbage or a dropped derivative."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support.guard_cases import CASES, NO_IMPL, Case, Wrapped, near
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import _guard, backends

Tensor = torch.Tensor

MONCE = "monce_log_weight"
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
differentiable = {name: case for name, case in CASES.items() if case.differentiable}
every_gradient = pytest.mark.parametrize("case", differentiable.values(), ids=differentiable)
pytestmark = pytest.mark.filterwarnings("ignore")  # torch announces the end of what is tested here, at every call


def check(got: Tensor, want: Tensor, most: float = 1e-4) -> None:
    assert not near(got, want, most), near(got, want, most)


def moved(case: Case) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Tensors, a direction for those that have derivatives, and the derivative along it by differences in float64."""
    tensors, directions = case.tensors(), case.tensors(9)[: case.differentiable]
    step = 1e-6

    def at(t: float) -> Tensor:
        there = [x.double() + t * v.double() for x, v in zip(tensors, directions)]
        return case.run("reference", *there, *(x.double() for x in tensors[len(there) :]))

    return tensors, directions, (at(step) - at(-step)) / (2 * step)


# ---- tensors without memory of their own -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fake", "wrapped"])
def test_tensors_without_memory_take_the_reference(kind):
    """In a process of its own: without the guard it dies of a segmentation fault."""
    program = Path(__file__).parents[1] / "support/guard_cases.py"
    done = subprocess.run([sys.executable, program, kind], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


DTENSOR = """
import sys, torch, kernels
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
x = torch.randn(2, 3, 6, 7)
d = distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])
torch.testing.assert_close(kernels.instance_norm(d).full_tensor(), kernels.instance_norm(x))
try:
    kernels.instance_norm(d, impl="cpu")
except kernels.BackendUnavailable as error:
    print(error)
torch.distributed.destroy_process_group()
"""


def test_dtensor(tmp_path):
    done = subprocess.run([sys.executable, "-c", DTENSOR, tmp_path / "store"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "impl='cpu' cannot run: x is a DTensor and has no memory of its own" in done.stdout


@every
def test_a_negative_bit_is_heard(case):
    tensors = case.tensors()
    want = case.run("auto", *tensors)
    for i, t in enumerate(tensors):
        check(case.run("auto", *tensors[:i], torch._neg_view(-t), *tensors[i + 1 :]), want, 1e-5)
    z = torch.complex(torch.zeros_like(tensors[0]), -tensors[0]).conj().imag  # the public way to one
    assert z.is_neg() and not z.is_contiguous()
    check(case.run("auto", z, *tensors[1:]), want, 1e-5)


@every_gradient
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_negative_bit_of_a_gradient_is_heard(case, create_graph):
    leaves = case.leaves(case.tensors())
    y = case.run("auto", *leaves)
    grad = torch.randn_like(y)
    found = case.gradients(y, leaves, torch._neg_view(-grad), create_graph=create_graph)
    assert all(g.requires_grad <= create_graph for g in found)  # a graph nobody asked for would keep memory
    for got, want in zip(found, case.gradients(y, leaves, grad)):
        check(got, want)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_IMPL])
def test_a_kernel_by_name_says_why_not(name):
    case = CASES[name]
    tensors = case.tensors()
    if name != MONCE:  # whose own products, before the kernel, see to the bit
        with pytest.raises(kernels.BackendUnavailable, match='negative bit.*impl="reference" and "auto" can'):
            case.run("cpu", torch._neg_view(-tensors[0]), *tensors[1:])
    with pytest.raises(kernels.BackendUnavailable, match="torch.func"):
        torch.func.vmap(lambda t: case.run("cpu", t, *tensors[1:]))(tensors[0][None])
    check(case.run("reference", torch._neg_view(-tensors[0]), *tensors[1:]), case.run("auto", *tensors), 1e-5)


@pytest.mark.parametrize("layout", ["sparse", "mkldnn"])
@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name].shapes) > 1])
def test_other_layouts_are_refused_by_name(name, layout):
    case = CASES[name]
    for i in range(len(case.shapes)):
        tensors = case.tensors()
        tensors[i] = tensors[i].to_sparse() if layout == "sparse" else tensors[i].to_mkldnn()
        with pytest.raises(TypeError, match=r"^\S+: got layout torch\.\w+, want a dense tensor"):
            case.run("auto", *tensors)


# ---- derivatives and batches that torch makes ------------------------------------------------------------------------


@every
@pytest.mark.parametrize("grad_mode", [True, False])
def test_forward_mode(case, grad_mode):
    tensors, directions, want = moved(case)
    with torch.set_grad_enabled(grad_mode), forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(tensors, directions)]
        y = forward_ad.unpack_dual(case.run("auto", *duals, *tensors[len(duals) :]))
        plain = case.run("auto", *tensors)  # in a level, but without tangents
    if case.differentiable:
        check(y.tangent, want, 2e-3)
    check(y.primal, plain)


@every_gradient
def test_forward_mode_over_a_backward(case):
    leaves = case.leaves(case.tensors())
    y = case.run("auto", *leaves)  # fused: no tangent yet
    grad, tangent = torch.randn_like(y), torch.randn_like(y)
    with forward_ad.dual_level():
        found = [forward_ad.unpack_dual(g) for g in case.gradients(y, leaves, forward_ad.make_dual(grad, tangent))]
    for got, primal, along in zip(found, case.gradients(y, leaves, grad), case.gradients(y, leaves, tangent)):
        check(got.primal, primal)
        check(got.tangent, along)


@every
def test_vmap(case):
    some, others = case.tensors(), case.tensors(1)
    both = [torch.stack(pair) for pair in zip(some, others)]
    got = torch.func.vmap(lambda *t: case.run("auto", *t))(*both)
    check(got, torch.stack((case.run("auto", *some), case.run("auto", *others))))
    for i in range(len(some)):
        one = torch.func.vmap(lambda t, i=i: case.run("auto", *some[:i], t, *some[i + 1 :]))(both[i])
        check(one[1], case.run("auto", *some[:i], others[i], *some[i + 1 :]))


@every_gradient
def test_torch_func(case):
    tensors, directions, along = moved(case)
    n = case.differentiable
    found = torch.func.grad(lambda *t: case.run("auto", *t, *tensors[n:]).square().sum(), tuple(range(n)))(*tensors[:n])
    leaves = case.leaves(tensors)
    for got, want in zip(found, case.gradients(case.run("auto", *leaves).square().sum(), leaves)):
        check(got, want, 1e-3)
    _, got = torch.func.jvp(lambda *t: case.run("auto", *t, *tensors[n:]), tuple(tensors[:n]), tuple(directions))
    check(got, along, 2e-3)


@every_gradient
def test_batched_gradients(case):
    tensors = case.tensors()
    leaves = case.leaves(tensors)
    y = case.run("auto", *leaves)
    grads = torch.randn(3, *y.shape)
    found = case.gradients(y, leaves, grads, is_grads_batched=True)
    for i, grad in enumerate(grads):
        for got, want in zip(found, case.gradients(y, leaves, grad)):
            check(got[i], want)
    jacobian = torch.autograd.functional.jacobian
    of = lambda t: case.run("auto", t, *tensors[1:])  # noqa: E731
    check(jacobian(of, tensors[0], vectorize=True), jacobian(of, tensors[0]))
    check(jacobian(of, tensors[0], vectorize=True, strategy="forward-mode"), jacobian(of, tensors[0]))


@every_gradient
def test_batched_second_derivatives(case):
    tensors = case.tensors()
    hessian = torch.autograd.functional.hessian
    of = lambda t: case.run("auto", t, *tensors[1:]).square().sum()  # noqa: E731
    exact = [t.double() for t in tensors]
    want = hessian(lambda t: case.run("reference", t, *exact[1:]).square().sum(), exact[0])
    check(hessian(of, tensors[0], vectorize=True), want, 1e-3 * want.abs().max().item() + 1e-3)
    check(torch.func.hessian(of)(tensors[0]), want, 1e-3 * want.abs().max().item() + 1e-3)


@pytest.mark.parametrize("name", ["instance_norm", "patch_nce_loss", "sinkhorn", "tap_patches", "blur_downsample"])
def test_transforms_inside_torch_compile(name):
    """Fused operators are opaque to them: they gave wrong numbers in silence."""
    case = CASES[name]
    tensors, directions, want = moved(case)
    n = case.differentiable

    def of(*t):
        return case.run("auto", *t, *tensors[n:])

    def along(*t):
        return torch.func.jvp(of, t, tuple(directions))[1]

    def dual(*t):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(of(*map(forward_ad.make_dual, t, directions))).tangent

    def gradient(*t):
        return torch.func.grad(lambda *t: of(*t).square().sum())(*t)

    for transformed in (along, dual):
        check(torch.compile(transformed, fullgraph=True, backend="eager")(*tensors[:n]), want, 2e-3)
    check(torch.compile(gradient, fullgraph=True, backend="eager")(*tensors[:n]), gradient(*tensors[:n]), 1e-3)


# ---- what records calls ----------------------------------------------------------------------------------------------


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


@every
@pytest.mark.parametrize("options", [{}, {"pre_dispatch": True}, {"tracing_mode": "symbolic"}], ids=str)
def test_make_fx(case, options):
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


@pytest.mark.parametrize("strict", [True, False])
def test_torch_export(strict):
    module, tensors, other = together(list(CASES))
    graph = torch.export.export(module, tuple(tensors), strict=strict)
    assert "fused_i2i" not in str(graph.graph)
    for got, want in zip(graph.module()(*other), module(*other)):
        check(got, want)


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


# ---- modes that look on, and what must stay fused --------------------------------------------------------------------


class Seen(TorchDispatchMode):
    """Notes the operators it sees, as profilers and counters do."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Wrapping(TorchDispatchMode):
    """Makes every new tensor one without memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return Wrapped(out) if isinstance(out, Tensor) and type(out) is Tensor else out


def test_a_mode_that_looks_on_changes_nothing():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    want = kernels.instance_norm(x)
    (wanted,) = torch.autograd.grad(want.square().sum(), x)
    with Seen() as seen:
        got = kernels.instance_norm(x)
        (grad,) = torch.autograd.grad(got.square().sum(), x)
    assert torch.equal(got, want) and torch.equal(grad, wanted)
    assert "aten.mean.dim" not in seen.names  # the reference would have shown itself


def test_a_mode_that_makes_other_tensors():
    x = torch.randn(2, 3, 8, 8)
    with Wrapping():
        assert backends.choose("auto", x) == "reference"
        assert type(kernels.instance_norm(x)) is Wrapped


def test_default_devices_do_not_matter():
    x = torch.randn(2, 3, 8, 8)
    want = kernels.instance_norm(x)
    with torch.device("cpu"):  # a mode of torch's functions
        assert torch.equal(kernels.instance_norm(x), want) and _guard.why_not([x], ["x"]) == ""


@pytest.mark.parametrize("name", ["instance_norm", "patch_nce_loss", "sinkhorn", "sample_patches", "blur_downsample"])
def test_torch_compile_keeps_the_fused_operators(name):
    case, graphs = CASES[name], []

    def keep(graph, tensors):
        graphs.append(graph.code)
        return graph

    tensors = case.tensors()
    compiled = torch.compile(lambda *t: case.run("auto", *t), fullgraph=True, backend=keep)
    check(compiled(*tensors), case.run("auto", *tensors))
    assert "fused_i2i" in graphs[0]


def test_subclasses_inside_torch_compile():
    case = CASES["instance_norm"]
    tensors = case.tensors()
    compiled = torch.compile(lambda *t: case.run("auto", *t), fullgraph=True, backend="aot_eager")
    check(compiled(*map(Wrapped, tensors)).inside, case.run("auto", *tensors))


def test_registered_operators_hear_a_negative_bit():
    x = torch.randn(2, 3, 8, 8)
    ops, negative, ids = torch.ops.fused_i2i, torch._neg_view(-x), torch.tensor([3, 1])
    check(ops.plane_stats(negative, 0, 1e-5), ops.plane_stats(x, 0, 1e-5), 1e-6)
    check(ops.sample_patches([negative], [ids])[0], ops.sample_patches([x], [ids])[0], 0)


SYMBOLIC = {
    "norm": (lambda x, pad, eps: kernels.instance_norm(x, padding=pad, eps=eps)),
    "resample": (lambda x, size, _: kernels.blur_downsample(x, filter_size=size + 1)),
    "padding": (lambda x, pad, _: kernels.reflection_pad2d(x, pad)),
    "patches": (lambda x, at, _: kernels.sample_patches([x], ids=[[0, at]])[0][0]),
    "sinkhorn": (lambda x, n, _: kernels.sinkhorn(x[0], n)),
    "nce": (lambda x, _, t: kernels.patch_nce_loss(x[0], x[0] + 1, temperature=t)),
    "monce": (lambda x, n, eps: kernels.monce_log_weight(x[0], x[0], iterations=n, eps=eps, neg_term_weight=eps)),
    "hdce": (lambda x, _, gamma: kernels.hdce_weight(x[0], gamma)),
}


@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("of", SYMBOLIC.values(), ids=SYMBOLIC)
def test_options_become_symbolic(of, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(of, fullgraph=True, backend="eager", dynamic=dynamic)
    x = torch.randn(1, 4, 9, 10)
    for options in ((1, 0.25), (2, 0.5), (3, 0.75)):
        check(compiled(x, *options), of(x, *options))


def test_tools_that_read_source_say_what_to_do_instead():
    fused = kernels.fuse(network())
    with pytest.raises(TypeError, match="x: got a Proxy of torch.fx.*before kernels.fuse"):
        torch.fx.symbolic_trace(lambda x: kernels.instance_norm(x))
    with pytest.raises(TypeError, match="torch.jit.script.*before kernels.fuse.*torch.jit.trace"):
        torch.jit.script(fused)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(fused, torch.randn(1, 3, 16, 16))
