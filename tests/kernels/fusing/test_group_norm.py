"""torch.nn.GroupNorm with one channel in each group: an instance norm, as long as it is one."""

import copy
import pickle

import pytest
import torch
from support.head_cases import attributes, check_equal, count_calls, results, taken_copy
from support.numerics import check_rule, make, rounded, run
from torch import nn

from kernels.fusing import group_norm

X = make((2, 4, 7, 6))["x"]


def call(module, x):
    return module(x)


def of(channels=4, groups=4, affine=True, eps=1e-5):
    module = nn.GroupNorm(groups, channels, eps, affine)
    generator = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return module


@pytest.mark.parametrize("affine", [True, False])
def test_the_same_in_float64(affine, monkeypatch):
    stock = of(affine=affine, eps=1e-3).double()
    fused = taken_copy(group_norm, stock)
    seen = count_calls(monkeypatch, group_norm, "instance_norm")
    for x in (X, X[:1], X[:, :, 0], X.unflatten(2, (1, 7))):
        check_equal(results(call, fused, (x,)), results(call, stock, (x,)))
        check_equal(results(call, fused.eval(), (x,)), results(call, stock, (x,)))
    assert len(seen) == 8
    assert group_norm.name_of(fused) == "instance_norm (GroupNorm with one channel in each group)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_rule(dtype, isa):
    stock = of().to(dtype)
    fused = taken_copy(group_norm, stock)
    fused.impl = "cpu"
    given = rounded({"x": X}, dtype)
    exact = run(lambda x: copy.deepcopy(stock).double()(x), given, torch.float64, False)
    for channels_last in (False, True):
        check_rule(*(run(lambda x, m=m: m(x), given, dtype, channels_last) for m in (fused, stock)), exact, dtype)


class Subclass(nn.GroupNorm):
    pass


def test_what_is_left():
    for module in (of(groups=2), of(groups=1), Subclass(4, 4), nn.InstanceNorm2d(4)):
        assert not group_norm.looks_like(module) and group_norm.name_of(module) == ""
    module = of()
    module.run = None
    assert group_norm.take(module) == "it has an attribute `run` of its own"
    module = of()
    module.forward = lambda x: x
    assert "replaced on the object" in group_norm.take(module)
    assert "meta device" in group_norm.take(of().to("meta"))
    assert "eps=-1.0" in group_norm.take(of(eps=-1.0))


def test_copies_hooks_and_giving_back(monkeypatch):
    stock = of().double()
    fused = copy.deepcopy(stock)
    before = attributes(fused)
    assert group_norm.take(fused) == "" and group_norm.take(fused) == ""
    assert list(fused.state_dict()) == list(stock.state_dict()) and repr(fused) == repr(stock)
    seen = count_calls(monkeypatch, group_norm, "instance_norm")
    shapes, want = [], {"y": stock(X)}
    handle = fused.register_forward_hook(lambda m, args, y: shapes.append(y.shape))
    check_equal({"y": fused(input=X)}, want)
    handle.remove()
    for m in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        check_equal({"y": m(X)}, want)
    assert len(seen) == 3 and shapes == [X.shape]
    group_norm.give_back(fused)
    assert attributes(fused) == before and type(fused) is nn.GroupNorm


def test_later_numbers_count(monkeypatch):
    stock = of().double()
    fused = taken_copy(group_norm, stock)
    seen = count_calls(monkeypatch, group_norm, "instance_norm")
    for m in (fused, stock):
        m.eps, m.bias = 0.1, None
    check_equal({"y": fused(X)}, {"y": stock(X)})
    assert len(seen) == 1
    for m in (fused, stock):
        m.num_groups = 2
    assert torch.equal(fused(X), stock(X)) and len(seen) == 1 and group_norm.name_of(fused) == ""


def test_inputs_the_operator_does_not_serve_go_their_old_way(monkeypatch):
    stock = of()
    fused = taken_copy(group_norm, stock)
    seen = count_calls(monkeypatch, group_norm, "instance_norm")
    for shape in ((3, 4), (2, 4, 1, 1), (0, 4, 3, 3)):
        x = torch.randn(shape)
        assert torch.equal(fused(x), stock(x))
    for bad in (torch.randn(2, 3, 5), X, torch.ones(2, 4, 5, dtype=torch.int64)):
        with pytest.raises(RuntimeError) as want:
            stock(bad)
        with pytest.raises(RuntimeError) as got:
            fused(bad)
        assert str(got.value) == str(want.value)
    assert not seen


def test_the_dtype_of_the_result():
    stock = of()
    fused = taken_copy(group_norm, stock)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for dtype in (torch.float32, torch.bfloat16):
                y, want = fused(X.to(dtype)), stock(X.to(dtype))
                assert y.dtype == want.dtype
                torch.testing.assert_close(y, want)


def test_compiled_as_a_whole_and_traced(monkeypatch):
    stock = of()
    fused = taken_copy(group_norm, stock)
    graph = torch.fx.symbolic_trace(nn.Sequential(fused)).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"]
    seen = count_calls(monkeypatch, group_norm, "instance_norm")
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    check_equal(results(call, compiled, (X.float(),)), results(call, stock, (X.float(),)), 1e-4)
    assert len(seen) == 1
