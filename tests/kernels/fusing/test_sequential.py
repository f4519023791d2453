"""A fused Sequential is right however it is used, and changes only what it runs as a whole."""

import copy
import functools
import io
import pickle

import pytest
import torch
from support.fuse_cases import Foreign, Smaller, check_same, count_runs, fused_copy
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint_sequential

import kernels


def layers(slope=0.1, inplace=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.LeakyReLU(slope, inplace),
        nn.ReflectionPad2d(1),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4),
        nn.ReLU(inplace),
    )


X = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Owner(nn.Module):
    """Runs its Sequential in a way of its own."""

    def __init__(self, use, inplace=True):
        super().__init__()
        self.body = layers(inplace=inplace)
        self.also = [self.body[1]]  # a reference that named_modules does not see
        self.use = use

    def forward(self, x):
        return self.use(self, x)


def through(modules, x):
    for module in modules:
        x = module(x)
    return x


def listed(modules, x):
    return torch.cat([(x := module(x)).flatten() for module in modules])


USES = {
    "noise between": lambda m, x: through(m.body[2:], m.body[1](m.body[0](x)) + 1.0),
    "slice": lambda m, x: m.body[:2](x).mean() + m.body[:3](x),
    "negative slice": lambda m, x: m.body[-2:](x),
    "children": lambda m, x: through(m.body.children(), x),
    "a second norm in a list": lambda m, x: m.body(x).mean() + m.also[0](x),
    "shared activation": lambda m, x: m.body(x).mean() + m.body[6](x),
    "parts after the whole": lambda m, x: m.body(x).mean() + m.body[5](x),
    "every map": lambda m, x: listed(m.body, x),
    "checkpoint_sequential": lambda m, x: checkpoint_sequential(m.body, 3, x, use_reentrant=False),
    "sum of Sequentials": lambda m, x: (m.body[:2] + m.body[2:])(x),
    "functional_call": lambda m, x: torch.func.functional_call(m.body, {"1.bias": torch.ones(4).to(x)}, (x,)),
}


@pytest.mark.parametrize("use", USES)
def test_owners_that_do_not_run_it_as_a_whole(use):
    refused = ("every map", "shared activation", "checkpoint_sequential")  # by torch, with in-place activations
    model = Owner(USES[use], inplace=use not in refused).double()
    check_same(fused_copy(model), model, X)


CHANGES = {
    "activation replaced": lambda m: m.__setitem__(2, nn.GELU()),
    "activation removed": lambda m: m.__delitem__(2),
    "slope": lambda m: setattr(m[2], "negative_slope", 0.7),
    "padding": lambda m: setattr(m[3], "padding", (0, 1, 2, 0)),
    "norm replaced": lambda m: m.__setitem__(1, nn.BatchNorm2d(4).double()),
    "layer between": lambda m: m.insert(2, nn.Tanh()),
    "eps": lambda m: setattr(m[5], "eps", 0.5),
    "appended": lambda m: m.append(nn.ReflectionPad2d(1)),
    "statistics by hand": lambda m: setattr(m[1], "track_running_stats", False),
    "forward of the activation": lambda m: setattr(m[2], "forward", lambda x: x * 2),
    "forward of the norm": lambda m: setattr(m[1], "forward", lambda x: x * 2),
    "forward of the padding": lambda m: setattr(m[3], "forward", lambda x: x * 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_fuse(change):
    model = layers(inplace=False).double()
    fused = fused_copy(model)
    for m in (model, fused):
        CHANGES[change](m)
    check_same(fused, model, X)
    for key, t in model.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], t)


def accelerate_like(module):
    """As libraries replace the forward of one object."""
    old = module.forward
    module.forward = functools.update_wrapper(functools.partial(lambda m, *args: old(*args), module), old)


@pytest.mark.parametrize("first", ["hooks", "fuse"])
@pytest.mark.parametrize("on_children", [True, False], ids=["children", "Sequential"])
def test_forwards_replaced_on_the_object(on_children, first):
    model = layers().double()
    other = copy.deepcopy(model)
    if first == "fuse":
        kernels.fuse(other)
    for module in other if on_children else [other]:
        accelerate_like(module)
    if first == "hooks":
        report = kernels.fuse(other).fuse_report
        assert report.left and not report.merged
    for training in (True, False):
        torch.testing.assert_close(other.train(training)(X), model.train(training)(X))


# ---- hooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["hook", "fuse"])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_hooks_see_what_they_saw(at, inplace, first):
    seen = {"plain": [], "fused": []}
    models = {"plain": layers(inplace=inplace).double(), "fused": layers(inplace=inplace).double()}
    if first == "fuse":
        kernels.fuse(models["fused"])
    for name, model in models.items():
        model[at].register_forward_hook(lambda m, args, y, name=name: seen[name].append(y))
    if first == "hook":
        left = dict(kernels.fuse(models["fused"]).fuse_report.left)
        assert list(left) == [str(max(at, 2))] and "a hook watches it or the norm before it" in left[str(max(at, 2))]
    want, got = models["plain"](X), models["fused"](X)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(seen["fused"], seen["plain"])
    assert len(seen["fused"]) == 1 and (at > 1 or (seen["fused"][0] < -1).any() != inplace)


def test_backward_and_global_hooks(monkeypatch):
    model, seen = kernels.fuse(layers(inplace=False).double()), []
    runs = count_runs(monkeypatch)
    handle = model[2].register_full_backward_hook(lambda m, gi, go: (gi[0] * 0,))  # guided backpropagation and the like
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert not x.grad.any() and runs == [("none", 0), ("relu", 0)]
    handle.remove()
    handle = register_module_forward_hook(lambda m, args, y: seen.append(type(m).__name__))
    try:
        model(X)
    finally:
        handle.remove()
    assert seen.count("ReLU") == seen.count("LeakyReLU") == seen.count("ReflectionPad2d") == 1
    runs.clear()
    model(X)
    assert runs == [("leaky_relu", 1), ("relu", 0)]


def test_code_that_looks_for_activations_finds_them():
    model = kernels.fuse(layers())
    assert isinstance(model, nn.Sequential) and isinstance(model[1:3], nn.Sequential)
    assert [type(m) for m in model if isinstance(m, (nn.ReLU, nn.LeakyReLU))] == [nn.LeakyReLU, nn.ReLU]
    for name, module in model.named_children():  # networks that are made gentler
        if isinstance(module, nn.LeakyReLU):
            setattr(model, name, nn.Identity())
    assert (model[:3].double()(X) < -1).any()


# ---- copies and torch's tools ----------------------------------------------------------------------------------------


class Named(nn.Sequential):
    """A layer as many packages write it; its forward is that of Sequential."""

    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels), nn.ReLU(True))
        self.channels = channels

    def widest(self):
        return max(self.channels, super().__len__())


def test_subclasses_keep_their_class(monkeypatch):
    model = nn.Sequential(Named(4), Named(4)).double()
    fused = fused_copy(model)
    assert isinstance(fused[0], Named) and fused[0].widest() == 4 and type(fused[0]).__name__ == "Named"
    assert [what for _, what in fused.fuse_report.merged] == ["ReLU merged into 0.1", "ReLU merged into 1.1"]
    check_same(fused, model, X)
    runs = count_runs(monkeypatch)
    fused(X)
    assert runs == [("relu", 0)] * 2


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_copies(protocol, monkeypatch):
    model = nn.Sequential(Named(4), Smaller(4), nn.InstanceNorm2d(4), nn.ReLU()).double()
    want, fused = model(X), fused_copy(model)
    saved = io.BytesIO()
    torch.save(fused, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(fused),
        copy.copy(fused),
        pickle.loads(pickle.dumps(fused, protocol)),
        torch.load(saved, weights_only=False),
    ]
    runs = count_runs(monkeypatch)
    for other in copies:
        runs.clear()
        torch.testing.assert_close(other(X), want)
        assert runs == [("relu", 0)] * 2 and other.fuse_report == fused.fuse_report
        assert [type(m) for m in other.modules()] == [type(m) for m in fused.modules()]
        assert kernels.fuse(other).fuse_report == fused.fuse_report


def test_threads_of_data_parallel_get_working_replicas():
    fused = kernels.fuse(nn.Sequential(Named(4), Smaller(4)).double())
    for module in fused.modules():  # what torch.nn.parallel.replicate does on one device
        replica = module._replicate_for_data_parallel()
        assert type(replica) is type(module)
    wrapped = kernels.fuse(nn.DataParallel(nn.Sequential(Named(4)).double()))
    torch.testing.assert_close(wrapped(X), wrapped.module(X))
    assert ("module.0.2", "ReLU merged into module.0.1") in wrapped.fuse_report.merged


def test_compiles_as_one_graph():
    model = nn.Sequential(Named(4), nn.ReflectionPad2d(1), nn.InstanceNorm2d(4), nn.LeakyReLU(), Smaller(4))
    want = model(X.float())
    compiled = torch.compile(kernels.fuse(model), fullgraph=True, backend="aot_eager")
    x = X.float().requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, want)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(model(x).square().sum(), x)[0])
    # a compiled one sees it too; not y + 1, which the norm behind takes off again
    model[0][2].register_forward_hook(lambda m, args, y: y.square())
    torch.testing.assert_close(compiled(X.float()), model(X.float()))
    assert not torch.allclose(model(X.float()), want)


def test_fx_traces_the_modules_one_by_one():
    model = nn.Sequential(Named(4), nn.ReflectionPad2d(1), nn.InstanceNorm2d(4), nn.ReLU(), Smaller(4)).double()
    fused = fused_copy(model)
    traced = torch.fx.symbolic_trace(fused)
    check_same(traced, model, X)
    assert sum(isinstance(m, kernels.InstanceNorm2d) for m in traced.modules()) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_script_and_quantisation_say_how_to_go_on():
    fused = kernels.fuse(nn.ModuleDict({"net": nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU())}))
    for module in (fused, fused["net"], fused["net"][0], Foreign):
        module = kernels.fuse(module()) if module is Foreign else module
        with pytest.raises(TypeError, match="torch.jit.script: got .*as it was before kernels.fuse"):
            torch.jit.script(module)
    with pytest.raises(TypeError, match="got torch.quint8, .*quantise the model first, then call kernels.fuse"):
        fused["net"](torch.quantize_per_tensor(X.float(), 0.1, 0, torch.quint8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own, about its quantisation
def test_a_quantised_model_is_left():
    tq = torch.ao.quantization
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if not engines:
        pytest.skip("this torch has no quantised operators")
    model = nn.Sequential(
        tq.QuantStub(), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), tq.DeQuantStub(),
        nn.InstanceNorm2d(4), nn.ReLU(),
    ).eval()  # fmt: skip
    model.qconfig = tq.get_default_qconfig(engines[-1])
    model[5].qconfig = None
    prepared = tq.prepare(model)
    prepared(X.float())
    quantised = tq.convert(prepared)
    want = quantised(X.float())
    report = kernels.fuse(quantised).fuse_report
    torch.testing.assert_close(quantised(X.float()), want)
    assert report.merged == [("6", "ReLU merged into 5")] and "subclass of InstanceNorm2d" in dict(report.left)["2"]
