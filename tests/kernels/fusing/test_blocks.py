"""A block that calls its norms by name: they take along what follows them, and it stays right when that changes."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.block_cases import Parts, X
from support.fuse_cases import check_same, fused_copy
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import kernels
from kernels.fusing import block


class Attributes(Parts):
    def forward(self, x):
        x = self.norm1(self.conv1(self.pad(x)))
        if self.optional:
            x = self.optional(x)
        if self.act:
            x = self.act(x)
        return x


class Functions(Parts):
    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(self.pad(x))), inplace=True)
        return F.leaky_relu(self.norm2(self.conv2(self.pad(y))), negative_slope=self.slope)


class Methods(Parts):
    def forward(self, x):
        return torch.relu(self.norm2(self.conv2(self.pad(self.norm1(self.conv1(self.pad(x))).relu_()))))


class Residual(Parts):
    def forward(self, x):
        return x + self.body(x)


class ResidualInPlace(Parts):
    """Conditional parts, a shared activation, the sum written to the norm's result, a ReLU behind it."""

    def _shortcut(self, x):
        return self.body(x) if self.body is not None else x

    def forward(self, x):
        out = self.act(self.norm1(self.conv1(self.pad(x))))
        out = self.norm2(self.conv2(self.pad(out)))
        out += self._shortcut(x)
        return self.act(out)


class ActivationThenSum(Parts):
    def forward(self, x):
        return torch.add(x, F.relu(self.norm1(self.conv1(self.pad(x))))) / math.sqrt(2)


class Broadcast(Parts):
    def forward(self, x):
        return self.norm1(x) + x.mean((2, 3), keepdim=True)


class TwoNorms(Parts):
    """The sum of two norms: only one can take the other along."""

    def forward(self, x):
        return self.norm1(x) + F.relu(self.norm2(x))


class Chained(Parts):
    """The residual of the second is the merged result of the first."""

    def forward(self, x):
        y = F.relu(self.norm1(x))
        return self.norm2(self.conv2(self.pad(y))) + y


class UsedTwice(Parts):
    """The map between norm and activation is used elsewhere."""

    def forward(self, x):
        y = self.norm1(x)
        return F.relu(y) + y.mean()


class ByMode(Parts):
    def forward(self, x):
        y = self.norm2(x)
        return F.relu(y) if self.training else F.leaky_relu(y, 0.5)


class Style(Parts):
    """Two arguments, and one with a default that changes what is computed."""

    def forward(self, x, s, noise=None):
        y = F.relu(self.norm2(x)) * s
        return y if noise is None else y + noise


MERGES = {
    Attributes: {("act", "LeakyReLU merged into norm1")},
    Functions: {("", "leaky_relu merged into norm2"), ("", "relu merged into norm1")},
    Methods: {("", "relu merged into norm1"), ("", "relu merged into norm2")},
    Residual: {("", "the residual merged into body")},
    ResidualInPlace: {("act", "LeakyReLU merged into norm1"), ("", "the residual merged into norm2")},
    ActivationThenSum: {("", "relu merged into norm1"), ("", "the residual merged into norm1")},
    Broadcast: {("", "the residual merged into norm1")},
    TwoNorms: {("", "the residual merged into norm1"), ("", "relu merged into norm2")},
    Chained: {("", "relu merged into norm1"), ("", "the residual merged into norm2")},
    UsedTwice: set(),
    ByMode: {("", "relu merged into norm2"), ("", "leaky_relu merged into norm2")},
}


@pytest.mark.parametrize("cls", MERGES, ids=lambda cls: cls.__name__)
def test_same_results_and_what_is_merged(cls):
    model = cls().double()
    fused = fused_copy(model)
    report = fused.fuse_report
    assert {entry for entry in report.merged if not entry[0].startswith("body.")} == MERGES[cls]
    assert not report.left and isinstance(fused, cls) and list(fused.state_dict()) == list(model.state_dict())
    check_same(fused, model, X)
    torch.testing.assert_close(fused.norm1.running_var, model.norm1.running_var)


def test_arguments():
    model = Style().double()
    fused = fused_copy(model)
    assert fused.fuse_report.merged == [("", "relu merged into norm2")]
    s, noise = torch.rand(2, 4, 1, 1, dtype=torch.float64), torch.rand_like(X)
    for args, options in (
        ((X, s), {}),
        ((X, s, noise), {}),
        ((X, s), {"noise": noise}),
        ((X,), {"s": s}),
        ((X, 2.0), {}),
    ):
        torch.testing.assert_close(fused(*args, **options), model(*args, **options))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 's'"):
        fused(X)


# ---- changes after fuse ----------------------------------------------------------------------------------------------


def test_changes_take_effect():
    model, fused = Attributes().double(), kernels.fuse(Attributes().double())
    fused.load_state_dict(model.state_dict())

    def change(model):
        yield setattr(model.act, "negative_slope", 0.7)
        yield setattr(model, "act", nn.ReLU())
        yield setattr(model, "act", None)
        yield setattr(model, "optional", nn.Tanh())

    for _ in zip(change(model), change(fused)):
        check_same(fused, model, X)
    again = kernels.fuse(fused)
    again.optional, model.optional = None, None
    again.act, model.act = nn.ReLU(), nn.ReLU()
    assert ("act", "ReLU merged into norm1") in kernels.fuse(again).fuse_report.merged
    check_same(again, model, X)
    del again.act, model.act
    again.act = model.act = None
    check_same(again, model, X)


def test_a_child_put_in_past_the_block_is_seen():
    model = Attributes().double()
    fused = fused_copy(model)
    for each in (model, fused):
        each._modules["act"] = nn.Tanh()
    check_same(fused, model, X)


def test_hooks_see_what_they_saw():
    model = ResidualInPlace().double()
    fused = fused_copy(model)
    seen = {}
    for name in ("norm1", "act", "body", "body.2"):
        for each in (model, fused):
            of = seen.setdefault((each is fused, name), [])
            handle = each.get_submodule(name).register_forward_hook(
                lambda m, i, y, of=of: of.append(y.detach().clone())
            )
            each(X)
            handle.remove()
        assert len(seen[True, name]) == len(seen[False, name]) > 0
        for a, b in zip(seen[True, name], seen[False, name]):
            torch.testing.assert_close(a, b)
    with register_module_forward_hook(lambda m, i, y: y * 2):
        want, got = model(X), fused(X)
    torch.testing.assert_close(got, want)
    check_same(fused, model, X)


def count_merged(monkeypatch):
    """How often a norm runs with an activation or a residual."""
    calls = []
    real = kernels.InstanceNorm2d.run

    def run(self, x, residual, activation, *rest):
        calls.append((activation, residual is not None))
        return real(self, x, residual, activation, *rest)

    monkeypatch.setattr(kernels.InstanceNorm2d, "run", run)
    return calls


def test_copies_and_pickles_run_merged(monkeypatch):
    model = ResidualInPlace().double()
    fused = fused_copy(model)
    calls = count_merged(monkeypatch)
    want = [("leaky_relu", False), ("none", False), ("none", True)]
    for each in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), kernels.fuse(copy.deepcopy(fused))):
        calls.clear()
        torch.testing.assert_close(each(X), model(X))
        assert calls == want


def test_a_residual_goes_through_nested_sequentials(monkeypatch):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            first, last = Attributes(), Attributes()
            last.act = None
            self.model = nn.Sequential(nn.Sequential(first, last))

        def forward(self, x):
            residual = x
            out = self.model(x)
            out += residual
            return out

    model = Nested().double()
    fused = fused_copy(model)
    assert ("", "the residual merged into model") in fused.fuse_report.merged
    check_same(fused, model, X)
    calls = count_merged(monkeypatch)
    fused(X)
    assert calls == [("leaky_relu", False), ("none", True)]


@pytest.mark.parametrize("cls", [ResidualInPlace, Functions])
def test_compiles_whole_and_merged(cls):
    model = cls()
    fused = fused_copy(model)
    graphs = {}
    for name, each in (("stock", model), ("fused", fused)):
        compiled = torch.compile(
            each, backend=lambda graph, inputs, name=name: graphs.setdefault(name, graph), fullgraph=True
        )
        torch.testing.assert_close(compiled(X.float()), model(X.float()))
    assert fused._fused_programs is not None  # torch.compile has assigned attributes of its own
    activations = {name: [n for n in graph.graph.nodes if "relu" in str(n.target)] for name, graph in graphs.items()}
    assert len(activations["stock"]) == 2 and len(activations["fused"]) == (1 if cls is ResidualInPlace else 0)


def test_a_replica_of_data_parallel_runs_merged(monkeypatch):
    fused = kernels.fuse(Functions())
    replica = fused._replicate_for_data_parallel()
    for key, child in fused._modules.items():
        replica._modules[key] = child
    calls = count_merged(monkeypatch)
    torch.testing.assert_close(replica(X.float()), fused(X.float()))
    assert calls == 2 * [("relu", False), ("leaky_relu", False)]


def test_another_dtype_of_the_residual_is_summed_by_torch():
    """The operator's result has the norm's dtype; torch's sum has the wider one, in-place torch's that of the norm."""
    for cls in (Residual, ResidualInPlace):
        model = cls()
        model.body[1].to(torch.bfloat16) if cls is Residual else None
        fused = fused_copy(model)
        if cls is Residual:
            model.body.register_forward_pre_hook(lambda m, args: (args[0].bfloat16(),))
            fused.body[0].register_forward_pre_hook(lambda m, args: (args[0].bfloat16(),))
        else:
            for each in (model, fused):
                each.body[2].register_forward_hook(lambda m, args, y: y.double())
        want, got = model(X.float()), fused(X.float())
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_float32_error_is_torchs():
    for cls in (Residual, Chained, ActivationThenSum):
        model = cls()
        want = copy.deepcopy(model).double()(X)
        error = [float((each(X.float()).double() - want).detach().abs().max()) for each in (fused_copy(model), model)]
        assert error[0] <= 2 * error[1] + 1e-6


def test_unfuse_gives_back_class_and_attributes():
    for cls in MERGES:
        model = cls().double()
        fused = fused_copy(model)
        fused(X)
        back = kernels.unfuse(fused)
        assert back is fused
        stock, given = dict(model.named_modules()), dict(back.named_modules())
        assert {name: type(m) for name, m in given.items()} == {name: type(m) for name, m in stock.items()}
        assert all(vars(given[name]).keys() == vars(stock[name]).keys() for name in stock)
        assert not any(isinstance(m, block.FusedBlock) for m in back.modules())
        model.load_state_dict(back.state_dict())
        check_same(back, model, X)


# ---- what fuse must not go past --------------------------------------------------------------------------------------


def test_a_part_keeps_its_precision_inside_a_fused_owner():
    """The owner would hand its residual to the part, past the autocast that the part was given."""
    for cls in (Residual, ResidualInPlace):
        model = cls()
        part = "body" if cls is Residual else "norm2"
        kernels.accelerate(model.get_submodule(part), "bfloat16")
        seen = []
        model.body[1].register_forward_hook(lambda m, args, y, seen=seen: seen.append(y.dtype))
        fused = kernels.fuse(model)
        y = fused(X.float())
        assert y.dtype == torch.float32 and (cls is ResidualInPlace or seen == [torch.bfloat16])
        assert not any(text.startswith("the residual") for _, text in fused.fuse_report.merged)
        kernels.unfuse(fused)
        assert type(fused.get_submodule(part)) in (nn.Sequential, nn.InstanceNorm2d)


def test_a_class_with_names_that_fuse_would_cover_is_left():
    class Named(Attributes):
        def run_with(self, x):
            return x

    model = Named().double()
    fused = fused_copy(model)
    assert "an attribute `run_with` of its own" in dict(fused.fuse_report.left)[""] and type(fused) is Named
    check_same(fused, model, X)

    class Named(nn.Sequential):
        takes_tail = False

    fused = kernels.fuse(Named(nn.InstanceNorm2d(4), nn.ReLU()))
    assert "an attribute `takes_tail` of its own" in dict(fused.fuse_report.left)[""]
    accelerated = kernels.accelerate(type("Outermost", (Attributes,), {"outermost": 3})(), "bfloat16")
    assert accelerated.outermost == 3


def test_a_class_that_acts_on_being_subclassed_is_not():
    made = []

    class Registry(Attributes):
        def __init_subclass__(cls, **options):
            made.append(cls)

    fused = kernels.fuse(Registry())
    assert "on being subclassed" in dict(fused.fuse_report.left)[""] and not made and type(fused) is Registry


def test_an_unpickled_block_is_traced_when_it_is_loaded(monkeypatch):
    loaded = pickle.loads(pickle.dumps(fused_copy(ResidualInPlace())))
    assert set(loaded._fused_programs.of_mode) == {True, False}
    monkeypatch.setattr(torch.fx.Tracer, "trace", lambda *args: pytest.fail("torch.fx changes calls in all threads"))
    calls = count_merged(monkeypatch)
    loaded(X.float())
    assert ("none", True) in calls
