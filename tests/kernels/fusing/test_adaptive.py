"""AdaIN with scale and shift from outside: known by what it computes, the same afterwards, and given back."""

import copy
import pickle

import pytest
import torch
from support.head_cases import attributes, check_equal, count_calls, results, taken_copy
from support.norm_stand_ins import ASSIGNED, UNLIKE_ASSIGNED, Assigned
from support.numerics import check_rule, make, rounded, run
from torch import nn

import kernels
from kernels.fusing import adaptive

GIVEN = make((2, 4, 7, 6), "scale", "shift")
X, SCALE, SHIFT = GIVEN.values()


def assigned(module, x, scale, shift):
    module.weight, module.bias = scale.flatten(), shift.flatten()
    return module(x)


@pytest.mark.parametrize("kind", ASSIGNED)
def test_the_same_in_float64(kind, monkeypatch):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):  # of its buffers, when it is tried
        stock = kind(4).to(dtype)
        fused = taken_copy(adaptive, stock).double()
        stock.double()
        seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
        for training in (True, False):
            for n, h, w in ((2, 7, 6), (1, 2, 1), (2, 1, 9)):
                inputs = (X[:n, :, :h, :w], SCALE[:n], SHIFT[:n])
                if h * w < 9:
                    inputs = (torch.randn(n, 4, h, w, dtype=torch.float64), *inputs[1:])
                got, want = (results(assigned, m.train(training), inputs) for m in (fused, stock))
                check_equal(got, want)
        assert len(seen) == 6
        assert adaptive.name_of(fused) == "adaptive_instance_norm (weight and bias from outside)"
        assert isinstance(fused, kind) and type(fused).__name__ == kind.__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_rule(dtype, isa):
    stock = Assigned(4).to(dtype)
    fused = taken_copy(adaptive, stock)
    fused.impl = "cpu"
    given = rounded(GIVEN, dtype)
    exact = run(lambda **t: assigned(copy.deepcopy(stock).double(), **t), given, torch.float64, False)
    for channels_last in (False, True):
        ours, torchs = (run(lambda m=m, **t: assigned(m, **t), given, dtype, channels_last) for m in (fused, stock))
        check_rule(ours, torchs, exact, dtype)


@pytest.mark.parametrize("kind", UNLIKE_ASSIGNED)
def test_what_computes_something_else_is_left(kind):
    module = kind(4)
    before, numbers = attributes(module), copy.deepcopy(module.state_dict())
    assert adaptive.looks_like(module)
    why = adaptive.take(module)
    assert "something else" in why or "changes its own" in why
    assert attributes(module) == before and adaptive.name_of(module) == ""
    assert all(torch.equal(t, numbers[key]) for key, t in module.state_dict().items())


def test_what_has_another_structure_is_not_tried():
    parameters = Assigned(4)
    parameters.scale = nn.Parameter(torch.ones(4))
    inside = Assigned(4)
    inside.act = nn.ReLU()
    full = Assigned(4)
    full.weight = torch.ones(4, 4)
    others = (kernels.AdaptiveInstanceNorm2d(4), nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.ReLU())
    for module in (parameters, inside, full, *others):
        assert not adaptive.looks_like(module)


def test_what_cannot_be_tried_is_left_with_a_reason():
    taken = {key: Assigned(4) for key in ("activation", "padding", "impl", "run")}
    for key, module in taken.items():
        setattr(module, key, None)
        assert adaptive.take(module) == f"it has an attribute `{key}` of its own"
    module = Assigned(4)
    module.forward = lambda x: x
    assert "replaced on the object" in adaptive.take(module)
    assert "meta device" in adaptive.take(Assigned(4).to("meta"))
    assert "eps=-1.0" in adaptive.take(Assigned(4, eps=-1.0))


def test_trying_it_leaves_everything_as_it_was():
    module = Assigned(4).eval()
    module.weight, module.bias = torch.ones(8), torch.zeros(8)
    before, state = attributes(module), torch.get_rng_state()
    assert adaptive.take(module) == ""
    assert torch.equal(torch.get_rng_state(), state) and not module.training
    adaptive.give_back(module)
    assert attributes(module) == before
    module.impl = "reference"
    adaptive.give_back(module)  # of one that was not taken
    assert module.impl == "reference"


def test_deepcopy_pickle_state_dict_and_hooks(monkeypatch):
    stock = Assigned(4).double()
    fused = taken_copy(adaptive, stock)
    assert list(fused.state_dict()) == list(stock.state_dict())
    fused.load_state_dict(stock.state_dict(), assign=True)
    want = assigned(stock, X, SCALE, SHIFT)
    seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
    for m in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        check_equal({"y": assigned(m, X, SCALE, SHIFT)}, {"y": want})
    shapes = []
    fused.register_forward_hook(lambda m, args, y: shapes.append(y.shape))
    assigned(fused, X, SCALE, SHIFT)
    assert shapes == [X.shape] and len(seen) == 3


def test_a_replica_of_data_parallel_runs_the_operator(monkeypatch):
    fused = taken_copy(adaptive, Assigned(4).double())
    seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
    replica = fused._replicate_for_data_parallel()
    for key, buffer in fused._buffers.items():
        setattr(replica, key, buffer.clone())
    assigned(replica, X, SCALE, SHIFT)
    assert len(seen) == 1 and adaptive.name_of(fused)


CHANGES = {
    "eps": lambda m: setattr(m, "eps", 0.1),
    "attribute": lambda m: setattr(m, "momentum", 0.5),
    "forward": lambda m: setattr(m, "forward", lambda x: 2 * x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_its_own_forward_runs(change, monkeypatch):
    stock = Assigned(4).double()
    fused = taken_copy(adaptive, stock)
    for m in (fused, stock):
        CHANGES[change](m)
    seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
    assert torch.equal(assigned(fused, X, SCALE, SHIFT), assigned(stock, X, SCALE, SHIFT))
    assert not seen and adaptive.name_of(fused) == ""
    if change != "forward":
        assert adaptive.take(fused) == "" and adaptive.name_of(fused)  # tried again


def test_inputs_the_operator_does_not_serve_go_their_old_way(monkeypatch):
    fused = taken_copy(adaptive, Assigned(4))
    seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
    with pytest.raises(AttributeError, match="shape"):
        assigned(fused, None, SCALE, SHIFT)  # what its own code says
    fused.weight = None
    with pytest.raises(RuntimeError):
        fused(torch.randn(2, 3, 5, 5))  # of other channels
    ones, zeros = torch.ones(8), torch.zeros(8)
    with pytest.raises(ValueError, match="more than 1 value"):
        assigned(fused, torch.ones(2, 4, 1, 1), ones, zeros)
    volume = torch.randn(2, 4, 3, 4, 5)
    torch.testing.assert_close(assigned(fused, volume, ones, zeros), nn.functional.instance_norm(volume))
    assert not seen


def test_what_follows_is_the_same_by_the_operator_and_by_torch(monkeypatch):
    fused = taken_copy(adaptive, Assigned(4).double())
    fused.weight, fused.bias = SCALE.flatten(), SHIFT.flatten()
    seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
    calls = [(X, "relu", 0.2, 0), (None, "leaky_relu", 0.1, 2), (X, "tanh", 0.2, 0), (X, "none", 0.2, 1)]
    ours = [fused.run(X, *how) for how in calls]
    assert len(seen) == 4
    fused.eps = 1e-5  # which ends it
    for how, y in zip(calls, ours):
        torch.testing.assert_close(fused.run(X, *how), y, rtol=1e-12, atol=1e-12)
    assert len(seen) == 4


def test_autocast_and_mixed_dtypes_keep_the_dtype_of_the_map(monkeypatch):
    fused = taken_copy(adaptive, Assigned(4))
    want = assigned(copy.deepcopy(fused).double(), X, SCALE, SHIFT)
    seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
    for x_dtype, dtype in ((torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32,) * 2):
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = assigned(fused, X.to(x_dtype), SCALE.to(dtype), SHIFT.to(dtype))
            assert y.dtype == x_dtype
            torch.testing.assert_close(y.double(), want, rtol=0.05, atol=0.05)
    assert len(seen) == 6
    with pytest.raises(RuntimeError, match="dtype"):
        assigned(fused, X.float(), SCALE, SHIFT)  # float64 beside float32, which batch norm refuses


class Decoder(nn.Module):
    """Gives each norm its share of what a network computed, in the forward."""

    def __init__(self):
        super().__init__()
        self.norm = Assigned(4)

    def forward(self, x, p):
        self.norm.bias, self.norm.weight = (half.contiguous().view(-1) for half in p.chunk(2, 1))
        return self.norm(x)


def test_compiled_as_a_whole(monkeypatch):
    stock = Decoder()
    fused = copy.deepcopy(stock)
    assert adaptive.take(fused.norm) == ""
    seen = count_calls(monkeypatch, adaptive, "adaptive_instance_norm")
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    inputs = (X.float(), torch.cat([SHIFT, SCALE], 1).float())
    check_equal(results(lambda m, *t: m(*t), compiled, inputs), results(lambda m, *t: m(*t), stock, inputs), 1e-5)
    assert len(seen) == 1 and adaptive.name_of(fused.norm)
