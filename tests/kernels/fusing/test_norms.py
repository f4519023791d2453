"""kernels.fuse on models that know nothing of this library: what it replaces and merges, keeps, leaves and reports."""

import pickle

import numpy as np
import pytest
import torch
from support.fuse_cases import Foreign, Smaller, check_same, count_runs, fused_copy
from torch import nn

import kernels


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Foreign().double()


def test_results_keys_and_modules_stay(model):
    fused = fused_copy(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    for (name, module), (fused_name, other) in zip(model.named_modules(), fused.named_modules(), strict=True):
        assert name == fused_name and isinstance(other, type(module)) and type(other).__name__ == type(module).__name__
    assert str(fused) == str(model)
    check_same(fused, model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    for name, t in model.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], t, rtol=1e-10, atol=1e-10)
    norms = [m for m in fused.modules() if isinstance(m, nn.InstanceNorm2d)]
    assert len(norms) == 8 and all(type(m) is kernels.InstanceNorm2d for m in norms)


def test_a_norm_runs_with_what_follows_it(model, monkeypatch):
    runs = count_runs(monkeypatch)
    kernels.fuse(model)(torch.randn(1, 3, 16, 16, dtype=torch.float64))
    block = [("relu", 1), ("none", 0)]
    assert runs == [("relu", 0), ("leaky_relu", 0), *block, *block, ("none", 0), ("relu", 0)]


def test_float32_results_stay_and_checkpoints_load_both_ways(model):
    model = model.float()
    fused = fused_copy(model)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    model.load_state_dict(fused.state_dict())
    fused.load_state_dict(model.state_dict())


def test_objects_stay(model):
    norm, weight, relu = model.stem[1], model.stem[1].weight, model.stem[2]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert kernels.fuse(model) is model
    assert model.stem[1] is norm and model.stem[1].weight is weight and model.stem[2] is relu
    assert optimizer.param_groups[0]["params"][2] is weight


# ---- report ----------------------------------------------------------------------------------------------------------


def test_report(model):
    report = kernels.fuse(model).fuse_report
    assert ("alone", "InstanceNorm2d") in report.replaced
    assert ("blocks.0.body.0", "ReflectionPad2d") in report.replaced
    assert ("blocks.0.body.3", "ReLU merged into blocks.0.body.2") in report.merged
    assert ("blocks.0.body.4", "ReflectionPad2d merged into blocks.0.body.2") in report.merged
    assert ("down.2", "LeakyReLU merged into down.1") in report.merged
    assert ("head.2", "ReLU merged into head.1") in report.merged  # the shared activation, in this place
    assert ("blocks.1", "the residual merged into blocks.1.body") in report.merged
    assert not report.left and not {name for name, _ in report.replaced} & {name for name, _ in report.merged}
    text = str(report)
    assert "10 replaced, 9 merged, 0 left" in text and "cpu" in text
    pickle.loads(pickle.dumps(model))


def test_a_second_fuse_keeps_what_the_first_reported(model):
    first = kernels.fuse(model.blocks).fuse_report
    whole = kernels.fuse(model).fuse_report
    assert {(f"blocks.{name}", what) for name, what in first.replaced} <= set(whole.replaced)
    assert ("blocks.0.body.3", "ReLU merged into blocks.0.body.2") in whole.merged
    assert kernels.fuse(model).fuse_report == whole == fused_copy(Foreign()).fuse_report
    own = nn.Sequential(kernels.InstanceNorm2d(4), kernels.ReflectionPad2d(1))  # its author's, not replaced by fuse
    assert not kernels.fuse(own).fuse_report.replaced and own.fuse_report.merged


def test_report_counts_each_module_once():
    report = kernels.fuse(nn.Sequential(Smaller(4), nn.InstanceNorm2d(4), nn.ReLU())).fuse_report
    assert report.replaced == [("0", "BlurDownsample, filter size 3"), ("1", "InstanceNorm2d")]
    assert report.merged == [("2", "ReLU merged into 1")] and not report.left


# ---- what is left ----------------------------------------------------------------------------------------------------


class Odd(nn.InstanceNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class Tapped(nn.Sequential):
    def forward(self, x):
        return [x := layer(x) for layer in self]


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(list(super().__iter__()))


class Registered(nn.Sequential):
    subclasses = []

    def __init_subclass__(cls, **options):
        Registered.subclasses.append(cls)


class Pickled(nn.Sequential):
    def __reduce__(self):
        return type(self), tuple(self)


def test_what_is_left_and_why():
    model = nn.ModuleDict(
        {
            "odd": nn.Sequential(Odd(4), nn.ReLU()),
            "one": nn.InstanceNorm1d(4),
            "lazy": nn.LazyInstanceNorm2d(),
            "tapped": Tapped(nn.InstanceNorm2d(4), nn.ReLU()),
            "backwards": Backwards(nn.InstanceNorm2d(4), nn.ReLU()),
            "registered": Registered(nn.InstanceNorm2d(4), nn.ReLU()),
            "pickled": Pickled(nn.InstanceNorm2d(4), nn.ReLU()),
            "batch": nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
            "gelu": nn.Sequential(nn.InstanceNorm2d(4), nn.GELU()),
        }
    )
    parametrized = model["parametrized"] = nn.InstanceNorm2d(4, affine=True)
    torch.nn.utils.parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    before = model["tapped"](x)
    left = dict(kernels.fuse(model).fuse_report.left)
    assert "subclass" in left["odd.0"] and "one" not in left
    assert "subclass" in left["parametrized"]
    assert "run the model once" in left["lazy"] and "forward of its own" in left["tapped"]
    assert "forward of its own" in left["backwards"] and "on being subclassed" in left["registered"]
    assert "being pickled" in left["pickled"] and pickle.loads(pickle.dumps(model["pickled"]))
    assert len(left) == 7 and not Registered.subclasses and not model.fuse_report.merged
    assert type(model["gelu"]) is nn.Sequential
    for a, b in zip(model["tapped"](x), before):
        torch.testing.assert_close(a, b)
    assert (model["backwards"](x) < 0).any()  # ReLU first


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda eps=eps: nn.InstanceNorm2d(3, eps=eps), f"eps={eps!r}, want a finite float")
        for eps in (np.float32(1e-5), np.int64(1), torch.tensor(1e-5), -1e-5, float("inf"))
    ]
    + [(lambda side=side: nn.ReflectionPad2d(side), "want ints") for side in (np.int64(1), np.int32(2))]
    + [(lambda: nn.ReflectionPad2d(-1), "crops")],
    ids=lambda value: None if callable(value) else value,
)
def test_arguments_that_torch_takes_and_the_operators_do_not(make, why):
    model, x = nn.Sequential(make()), torch.randn(2, 3, 6, 6)
    before, kind = model(x), type(model[0])
    report = kernels.fuse(model).fuse_report
    assert torch.equal(torch.nan_to_num(model(x)), torch.nan_to_num(before)) and type(model[0]) is kind
    assert not report.replaced and why in dict(report.left)["0"]


def test_attributes_of_the_operators_names_are_not_overwritten():
    norm, pad, blur = nn.InstanceNorm2d(4), nn.ReflectionPad2d(1), Smaller(4)
    norm.activation = pad.impl = blur.impl = "theirs"
    report = kernels.fuse(nn.ModuleList([norm, pad, blur])).fuse_report
    assert norm.activation == pad.impl == blur.impl == "theirs"
    assert [name for name, why in report.left if "attribute `" in why] == ["0", "1", "2"]
    assert report.replaced == [("2.pad", "ReflectionPad2d")]


def test_slopes_that_the_operators_do_not_take():
    model = nn.Sequential(nn.InstanceNorm2d(4), nn.LeakyReLU(np.float32(0.1)), nn.InstanceNorm2d(4), nn.LeakyReLU(0.1))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    want = model(x)
    torch.testing.assert_close(kernels.fuse(model)(x), want)
    assert [name for name, _ in model.fuse_report.merged] == ["3"]
    assert "negative_slope" in dict(model.fuse_report.left)["1"]


def test_model_that_is_a_norm_and_bad_input():
    norm = nn.InstanceNorm2d(4)
    assert kernels.fuse(norm) is norm and type(norm) is kernels.InstanceNorm2d
    with pytest.raises(TypeError, match="model: got int"):
        kernels.fuse(3)
    with pytest.raises(TypeError, match="ScriptModule"):
        kernels.fuse(torch.jit.script(nn.Sequential(nn.ReLU())))


def test_scripted_child_is_left():
    scripted = torch.jit.script(nn.Sequential(nn.InstanceNorm2d(4), nn.Sequential(nn.ReLU())))
    model = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU(), scripted)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    want = model(x)
    report = kernels.fuse(model).fuse_report
    torch.testing.assert_close(model(x), want)
    assert report.left == [("2", "a ScriptModule: compiled code cannot be changed")]
    assert len(report.replaced) == len(report.merged) == 1


@pytest.mark.parametrize(("dims", "sides"), [(1, (9,)), (3, (5, 6, 7))])
@pytest.mark.parametrize("affine", [False, True])
def test_one_and_three_dimensions(dims, sides, affine):
    torch.manual_seed(0)
    convolution = getattr(nn, f"Conv{dims}d")
    norm = getattr(nn, f"InstanceNorm{dims}d")
    model = nn.Sequential(
        convolution(3, 4, 3, padding=1), norm(4, affine=affine), nn.LeakyReLU(0.01, inplace=True),
        convolution(4, 4, 3), norm(4, affine=affine, track_running_stats=True), nn.ReLU(),
    ).double()  # fmt: skip
    fused = fused_copy(model)
    name = f"InstanceNorm{dims}d"
    assert fused.fuse_report.replaced == [("1", name), ("4", name)] and not fused.fuse_report.left
    assert fused.fuse_report.merged == [("2", "LeakyReLU merged into 1"), ("5", "ReLU merged into 4")]
    check_same(fused, model, torch.randn(2, 3, *sides, dtype=torch.float64))
    check_same(fused, model, torch.randn(3, *sides, dtype=torch.float64))  # without a batch


def test_a_padding_of_planes_is_not_merged_into_a_norm_of_lines():
    """ReflectionPad2d pads (N, C, L) along channels as well."""
    model = nn.Sequential(nn.InstanceNorm1d(4), nn.ReLU(), nn.ReflectionPad2d(1))
    fused = fused_copy(model)
    assert fused.fuse_report.merged == [("1", "ReLU merged into 0")]
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(fused(x), model(x))
