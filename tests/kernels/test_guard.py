"""Tensors that a kernel may not be handed by address, and what batches or differentiates calls: every public operator
gives the right numbers there or raises, and never a segmentation fault, garbage or a dropped derivative. What records
calls is in test_tracing.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support.guard_cases import CASES, MONCE, NO_IMPL, Case, Wrapped, check, every, every_gradient
from support.turns import taking_turns
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import _guard, backends

Tensor = torch.Tensor

pytestmark = pytest.mark.filterwarnings("ignore")  # torch announces the end of what is tested here, at every call


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
def test_tensors_without_memory_take_the_reference(kind, forked):
    """In a process of its own: without the guard it dies of a segmentation fault."""
    program = Path(__file__).parents[1] / "support/guard_cases.py"
    code = f"import runpy, sys; sys.argv[1:] = [{kind!r}]; runpy.run_path({str(program)!r}, run_name='__main__')"
    done = forked(code)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


DTENSOR = """
import os, torch, kernels
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
torch.distributed.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=0, world_size=1)
x = torch.randn(2, 3, 6, 7)
d = distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])
torch.testing.assert_close(kernels.instance_norm(d).full_tensor(), kernels.instance_norm(x))
try:
    kernels.instance_norm(d, impl="cpu")
except kernels.BackendUnavailable as error:
    print(error)
torch.distributed.destroy_process_group()
"""


def test_dtensor(tmp_path, forked):
    done = forked(DTENSOR, STORE=str(tmp_path / "store"))
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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("patch_nce_loss", "sinkhorn", "blur_downsample")]


@pytest.mark.parametrize("name", ["instance_norm", "tap_patches", *SLOW])
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


def test_constants_are_marked_as_torch_marks_them():
    def ours():
        pass

    def torchs():
        pass

    assert vars(_guard.constant_to_compile(ours)) == vars(torch.compiler.assume_constant_result(torchs)) != {}


def test_subclasses_inside_torch_compile():
    case = CASES["instance_norm"]
    tensors = case.tensors()
    compiled = torch.compile(lambda *t: case.run("auto", *t), fullgraph=True, backend="aot_eager")
    check(compiled(*map(Wrapped, tensors)).inside, case.run("auto", *tensors))


def test_registered_operators_hear_a_negative_bit():
    x = torch.randn(2, 3, 8, 8)
    ops, negative, ids = torch.ops.fused_i2i, torch._neg_view(-x), torch.tensor([3, 1])
    check(ops.plane_stats(negative, 0, 1e-5, "cpu"), ops.plane_stats(x, 0, 1e-5, "cpu"), 1e-6)
    found, want = (ops.sample_patches([t], [ids], "cpu")[0] for t in (negative, x))
    check(found, want, 0)


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


@pytest.mark.parametrize("name, dynamic", taking_turns(2, SYMBOLIC, [True, None]))
def test_options_become_symbolic(name, dynamic):
    of = SYMBOLIC[name]
    torch._dynamo.reset()
    compiled = torch.compile(of, fullgraph=True, backend="eager", dynamic=dynamic)
    x = torch.randn(1, 4, 9, 10)
    for options in ((1, 0.25), (2, 0.5), (3, 0.75)):
        check(compiled(x, *options), of(x, *options))
