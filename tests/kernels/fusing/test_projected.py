"""AdaIN with a projection of the style inside: known by what it computes, the same afterwards, and given back."""

import copy
import pickle

import pytest
import torch
from support.head_cases import attributes, check_equal, count_calls, results, taken_copy
from support.norm_stand_ins import (
    NOT_PROJECTED,
    PROJECTED,
    PROJECTED_SPACE,
    STYLE,
    UNLIKE_PROJECTED,
    Projected,
    ProjectedLast,
    ProjectedTwice,
)
from support.numerics import check_rule, make, rounded, run
from torch import nn

import kernels
from kernels.fusing import projected

X = make((2, 4, 7, 6))["x"]
S = make((2, STYLE, 1), seed=2)["x"][..., 0]


def call(module, x, s):
    return module(x, s)


@pytest.mark.parametrize("kind", PROJECTED)
def test_the_same_in_float64(kind, monkeypatch):
    x = torch.randn(2, 4, *PROJECTED_SPACE.get(kind, (7, 6)), dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):  # in which it is tried
        stock = kind(4).to(dtype)
        fused = taken_copy(projected, stock).double()
        stock.double()
        seen = count_calls(monkeypatch, projected, "adaptive_instance_norm")
        for training in (True, False):
            for n in (2, 1):
                given = (x[:n], S[:n])
                check_equal(*(results(call, m.train(training), given) for m in (fused, stock)))
        assert len(seen) == 4 and isinstance(fused, kind)
    names = "to_shift, to_scale" if issubclass(kind, ProjectedTwice) else "style" if kind is ProjectedLast else "fc"
    assert projected.name_of(fused) == f"adaptive_instance_norm (projection {names})"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_rule(dtype, isa):
    stock = Projected(4).to(dtype)
    fused = taken_copy(projected, stock)
    fused.impl = "cpu"
    given = rounded({"x": X, "s": S}, dtype)
    exact = run(lambda x, s: copy.deepcopy(stock).double()(x, s), given, torch.float64, False)
    for channels_last in (False, True):
        ours, torchs = (run(lambda x, s, m=m: m(x, s), given, dtype, channels_last) for m in (fused, stock))
        check_rule(ours, torchs, exact, dtype)


@pytest.mark.parametrize("kind", UNLIKE_PROJECTED)
def test_what_computes_something_else_is_left(kind):
    module = kind(4)
    before = attributes(module)
    assert projected.looks_like(module)
    why = projected.take(module)
    assert "something else" in why or "could not be tried" in why
    assert attributes(module) == before and projected.name_of(module) == ""


def test_what_has_another_structure_is_not_tried():
    for kind in NOT_PROJECTED:
        assert not projected.looks_like(kind(4))
    own = Projected(4)
    own.scale = nn.Parameter(torch.ones(4))
    others = (kernels.AdaptiveInstanceNorm2d(4), nn.Sequential(nn.InstanceNorm2d(4), nn.Linear(4, 4)), nn.Identity())
    for module in (own, *others):
        assert not projected.looks_like(module)


def test_what_cannot_be_tried_is_left_with_a_reason():
    module = Projected(4)
    module.padding = 1
    assert projected.take(module) == "it has an attribute `padding` of its own"
    module = Projected(4)
    module.norm.register_forward_hook(lambda m, args, y: None)
    assert "hook watches its norm" in projected.take(module)
    assert "meta device" in projected.take(Projected(4).to("meta"))
    module = Projected(4)
    module.fc = nn.LazyLinear(8)
    assert projected.looks_like(module) and "not initialised" in projected.take(module)
    module = Projected(4)
    module.norm.eps = -1.0
    assert "eps=-1.0" in projected.take(module)


def test_trying_it_does_not_call_the_projection():
    module, seen = ProjectedTwice(4), []
    for m in (module.to_scale, module.to_shift):
        m.register_forward_hook(lambda *_: seen.append(_))
        m.register_forward_pre_hook(lambda *_: seen.append(_))
    before, numbers, state = attributes(module), copy.deepcopy(module.state_dict()), torch.get_rng_state()
    assert projected.take(module) == "" and not seen
    for key, t in module.state_dict().items():
        assert torch.equal(t, numbers[key])
    projected.give_back(module)
    assert attributes(module) == before and torch.equal(torch.get_rng_state(), state)


def test_hooks_of_the_projection_run_and_one_of_the_norm_ends_it(monkeypatch):
    stock = Projected(4).double()
    fused = taken_copy(projected, stock)
    seen = count_calls(monkeypatch, projected, "adaptive_instance_norm")
    for m in (fused, stock):
        m.fc.register_forward_hook(lambda fc, args, y: 2 * y)
    check_equal({"y": fused(X, S)}, {"y": stock(X, S)})
    assert len(seen) == 1
    for m in (fused, stock):
        m.norm.register_forward_hook(lambda norm, args, y: y + 1)
    assert torch.equal(fused(X, S), stock(X, S)) and len(seen) == 1 and projected.name_of(fused) == ""


def test_deepcopy_pickle_state_dict(monkeypatch):
    stock = Projected(4).double()
    fused = taken_copy(projected, stock)
    assert list(fused.state_dict()) == list(stock.state_dict())
    fused.load_state_dict(stock.state_dict())
    seen = count_calls(monkeypatch, projected, "adaptive_instance_norm")
    kernels.fuse(fused)  # whose norm may be fused too
    for m in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        check_equal({"y": m(X, S)}, {"y": stock(X, S)})
    replica = fused._replicate_for_data_parallel()  # as DataParallel fills it
    for key, m in fused._modules.items():
        setattr(replica, key, copy.deepcopy(m))
    check_equal({"y": replica(X, S)}, {"y": stock(X, S)})
    assert len(seen) == 4


CHANGES = {
    "projection": lambda m: setattr(m, "fc", nn.Linear(STYLE, 8).double()),
    "norm": lambda m: setattr(m, "norm", nn.InstanceNorm2d(4, eps=0.1)),
    "norm behind its back": lambda m: m._modules.update(norm=nn.BatchNorm2d(4).double()),
    "affine norm behind its back": lambda m: m._modules.update(norm=nn.InstanceNorm2d(4, affine=True).double()),
    "attribute": lambda m: setattr(m, "input_scale", 2.0),
    "child": lambda m: m.add_module("noise", nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_its_own_forward_runs(change, monkeypatch):
    stock = Projected(4).double()
    fused = taken_copy(projected, stock)
    for m in (fused, stock):
        torch.manual_seed(1)
        CHANGES[change](m)
    seen = count_calls(monkeypatch, projected, "adaptive_instance_norm")
    assert torch.equal(fused(X, S), stock(X, S)) and not seen and projected.name_of(fused) == ""


def test_inputs_the_operator_does_not_serve_go_their_old_way(monkeypatch):
    stock = ProjectedTwice(4).eval()
    fused = taken_copy(projected, stock)
    x, s = X.float(), S.float()
    seen = count_calls(monkeypatch, projected, "adaptive_instance_norm")
    torch.testing.assert_close(fused(x, s[:1]), stock(x, s[:1]))  # one style for all
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        fused(x[:, :, :1, :1], s)
    torch.testing.assert_close(fused(x, y=s, noise=None, other=1), stock(x, s))
    with pytest.raises(TypeError):
        fused(x)
    assert not seen
    torch.testing.assert_close(fused(x, s), stock(x, s))
    assert len(seen) == 1


def test_the_dtype_of_the_result(monkeypatch):
    stock = Projected(4)
    fused = taken_copy(projected, stock)
    seen, calls = count_calls(monkeypatch, projected, "adaptive_instance_norm"), []
    fused.fc.register_forward_hook(lambda fc, args, y: calls.append(y.dtype))
    for autocast, dtype, runs in (
        (False, torch.float32, 1),
        (False, torch.bfloat16, 0),  # float32 of the projection widens the map
        (False, torch.float64, 1),
        (True, torch.float32, 1),
        (True, torch.bfloat16, 1),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for what in ((None, "none", 0.2, 0), (None, "relu", 0.2, 2)):
                y = fused.run(X.to(dtype), *what, S.float())
                want = stock(X.to(dtype), S.float())
                if what[3]:
                    with torch.autocast("cpu", enabled=False):  # which would widen what is padded
                        want = nn.functional.pad(want.relu(), (2,) * 4, "reflect")
                assert y.dtype == want.dtype
                rough = 0.05 if autocast else 1e-5
                torch.testing.assert_close(y, want, rtol=rough, atol=rough)
        assert len(seen) == 2 * runs and len(calls) == 2  # the projection is called once, whatever comes of it
        seen.clear()
        calls.clear()


class Traceable(Projected):
    def forward(self, x, s):
        h = self.fc(s)[..., None, None]
        return (1 + h[:, :4]) * self.norm(x) + h[:, 4:]


class Holder(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, s):
        return self.norm(x, s)


def test_compiled_as_a_whole_and_traced(monkeypatch):
    stock = Traceable(4)
    fused = taken_copy(projected, stock)
    x, s = X.float(), S.float()
    graph = torch.fx.symbolic_trace(Holder(fused))
    assert "norm.fc" in [node.target for node in graph.graph.nodes]
    torch.testing.assert_close(graph(x, s), stock(x, s))
    seen = count_calls(monkeypatch, projected, "adaptive_instance_norm")
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    check_equal(results(call, compiled, (x, s)), results(call, stock, (x, s)), 1e-4)
    assert len(seen) == 1
