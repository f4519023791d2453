"""MUNIT's layer norm: known by what it computes, the same afterwards, and given back."""

import copy
import pickle

import pytest
import torch
from support.head_cases import attributes, check_equal, count_calls, results, taken_copy
from support.norm_stand_ins import LAYERS, UNLIKE_LAYERS, Layer, LayerByMoments, ScaledLayer
from support.numerics import check_rule, make, rounded, run
from torch import nn

import kernels
from kernels.fusing import layer_norm

X = make((3, 4, 7, 6))["x"]


def call(module, x):
    return module(x)


def with_numbers(module):
    """Parameters of which none is where it began."""
    generator = torch.Generator().manual_seed(3)
    for p in module.parameters():
        p.data = torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p.dtype)
    return module


@pytest.mark.parametrize("kind", LAYERS)
def test_the_same_in_float64(kind, monkeypatch):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):  # in which it is tried
        stock = with_numbers(kind(4)).to(dtype)
        fused = taken_copy(layer_norm, stock).double()
        stock.double()
        seen = count_calls(monkeypatch, layer_norm, "munit_layer_norm")
        for training in (True, False):
            for x in (X, X[:1], X[:2, :, :2, :1]):
                check_equal(*(results(call, m.train(training), (x,)) for m in (fused, stock)))
        assert len(seen) == 6
        assert layer_norm.name_of(fused) == "munit_layer_norm" and isinstance(fused, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_rule(dtype, isa):
    stock = with_numbers(Layer(4)).to(dtype)
    fused = taken_copy(layer_norm, stock)
    fused.impl = "cpu"
    given = rounded({"x": X}, dtype)
    exact = run(copy.deepcopy(stock).double(), given, torch.float64, False)
    for channels_last in (False, True):
        check_rule(*(run(m, given, dtype, channels_last) for m in (fused, stock)), exact, dtype)


@pytest.mark.parametrize("kind", UNLIKE_LAYERS)
def test_what_computes_something_else_is_left(kind):
    module = kind(4)
    before, state = attributes(module), torch.get_rng_state()
    assert layer_norm.looks_like(module)
    why = layer_norm.take(module)
    assert "something else" in why or "RuntimeError: want a mask" in why
    assert attributes(module) == before and layer_norm.name_of(module) == ""
    assert torch.equal(torch.get_rng_state(), state)


def test_what_has_another_structure_is_not_tried():
    buffer, inside, matrix = Layer(4), Layer(4), Layer(4)
    buffer.register_buffer("mean", torch.zeros(4))
    inside.act = nn.ReLU()
    matrix.gamma = nn.Parameter(torch.ones(4, 1, 1))
    others = (kernels.MunitLayerNorm(4), nn.LayerNorm(4), nn.GroupNorm(4, 4), nn.ReLU(), nn.RMSNorm(4))
    for module in (buffer, inside, matrix, *others):
        assert not layer_norm.looks_like(module)


def test_what_cannot_be_tried_is_left_with_a_reason():
    module = Layer(4)
    module.activation = nn.functional.relu
    assert layer_norm.take(module) == "it has an attribute `activation` of its own"
    module = Layer(4)
    module.forward = lambda x: x
    assert "replaced on the object" in layer_norm.take(module)
    assert "meta device" in layer_norm.take(Layer(4).to("meta"))
    assert "eps=None" in layer_norm.take(Layer(4, eps=None))
    assert "0 channels" in layer_norm.take(Layer(0, affine=False))
    module = Layer(4)
    module.beta = nn.Parameter(torch.zeros(3))
    assert "different sizes" in layer_norm.take(module)
    module.beta = nn.UninitializedParameter()
    assert layer_norm.looks_like(module) and "not initialised" in layer_norm.take(module)


def test_deepcopy_pickle_state_dict_hooks_and_giving_back(monkeypatch):
    stock = with_numbers(LayerByMoments(4)).double()
    fused = copy.deepcopy(stock)
    before = attributes(fused)
    assert layer_norm.take(fused) == "" and list(fused.state_dict()) == list(stock.state_dict())
    seen = count_calls(monkeypatch, layer_norm, "munit_layer_norm")
    shapes, want = [], {"y": stock(X)}
    handle = fused.register_forward_hook(lambda m, args, y: shapes.append(y.shape))
    check_equal({"y": fused(X)}, want)
    handle.remove()
    for m in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        check_equal({"y": m(X)}, want)
    assert len(seen) == 3 and shapes == [X.shape]
    layer_norm.give_back(fused)
    check_equal({"y": fused(X)}, want)
    assert attributes(fused) == before and len(seen) == 3


def test_other_parameters_are_taken_and_other_attributes_end_it(monkeypatch):
    stock = with_numbers(Layer(4)).double()
    fused = taken_copy(layer_norm, stock)
    seen = count_calls(monkeypatch, layer_norm, "munit_layer_norm")
    numbers = {key: torch.randn_like(t) for key, t in stock.state_dict().items()}
    for m in (fused, stock):
        m.load_state_dict(numbers, assign=True)
    check_equal({"y": fused(X)}, {"y": stock(X)})
    replica = fused._replicate_for_data_parallel()  # as DataParallel fills it
    for key, p in fused._parameters.items():
        setattr(replica, key, p * 1)
    check_equal({"y": replica(X)}, {"y": stock(X)})
    assert len(seen) == 2
    for m in (fused, stock):
        m.affine = False
    assert torch.equal(fused(X), stock(X)) and len(seen) == 2 and layer_norm.name_of(fused) == ""
    fused.affine = True
    assert layer_norm.take(fused) == "" and layer_norm.name_of(fused)


def test_the_dtype_of_the_result(monkeypatch):
    stock = with_numbers(Layer(4))
    fused = taken_copy(layer_norm, stock)
    seen = count_calls(monkeypatch, layer_norm, "munit_layer_norm")
    for dtype, runs in ((torch.float32, 1), (torch.float64, 1), (torch.bfloat16, 0)):
        y, want = fused(X.to(dtype)), stock(X.to(dtype))
        assert y.dtype == want.dtype and len(seen) == runs  # bfloat16: float32 parameters give float32
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(X.bfloat16())
    assert y.dtype == torch.bfloat16 and len(seen) == 1
    torch.testing.assert_close(y.float(), stock(X.float()), rtol=0.05, atol=0.05)
    fused.gamma.data, stock.gamma.data = (stock.gamma.data.double() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(X.float()).dtype == stock(X.float()).dtype == torch.float64 and len(seen) == 1


def test_inputs_the_operator_does_not_serve_go_their_old_way(monkeypatch):
    stock = LayerByMoments(4)
    fused = taken_copy(layer_norm, stock)
    seen = count_calls(monkeypatch, layer_norm, "munit_layer_norm")
    x = torch.randn(2, 4, 1, 1)
    torch.testing.assert_close(fused(x), stock(x))
    torch.testing.assert_close(fused(x=x), stock(x))
    with pytest.raises(RuntimeError):
        fused(torch.randn(2, 3, 5, 5))
    with pytest.raises(TypeError):
        fused(x, x)
    assert not seen


def test_compiled_as_a_whole_and_traced(monkeypatch):
    stock = with_numbers(ScaledLayer(4))
    fused = taken_copy(layer_norm, stock)
    traced = torch.fx.symbolic_trace(nn.Sequential(fused))
    torch.testing.assert_close(traced(X.float()), stock(X.float()))
    seen = count_calls(monkeypatch, layer_norm, "munit_layer_norm")
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    check_equal(results(call, compiled, (X.float(),)), results(call, stock, (X.float(),)), 1e-4)
    assert len(seen) == 1
