"""kernels.fuse on models that know nothing of this library."""

import copy
import pickle

import pytest
import torch
from torch import nn

import kernels


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(c, c, 3),
            nn.InstanceNorm2d(c),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(c, c, 3),
            nn.InstanceNorm2d(c),
        )

    def forward(self, x):
        return x + self.body(x)


class Foreign(nn.Module):
    """The shapes real models have: Sequentials, norms alone, shared activations, affine norms with statistics."""

    def __init__(self):
        super().__init__()
        shared = nn.ReLU(True)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), shared)
        self.down = nn.Sequential(
            nn.Conv2d(8, 16, 4, 2, 1), nn.InstanceNorm2d(16, affine=True, track_running_stats=True), nn.LeakyReLU(0.01)
        )
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.alone = nn.InstanceNorm2d(16)
        self.head = nn.Sequential(nn.Conv2d(16, 16, 1), nn.InstanceNorm2d(16), shared, nn.Conv2d(16, 1, 1))

    def forward(self, x):
        return self.head(torch.tanh(self.alone(self.blocks(self.down(self.stem(x))))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Foreign().double()


def gradients(model, x):
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [p for p in model.parameters()])]


def test_results_keys_and_indices_stay(model):
    fused = kernels.fuse(copy.deepcopy(model))
    assert list(fused.state_dict()) == list(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            assert list(fused.get_submodule(name)._modules) == list(module._modules)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for training in (True, False):
        for a, b in zip(gradients(fused.train(training), x), gradients(model.train(training), x)):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for name, t in model.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[name], t, rtol=1e-10, atol=1e-10)
    norms = [m for m in fused.modules() if isinstance(m, nn.InstanceNorm2d)]
    assert len(norms) == 8 and all(type(m) is kernels.InstanceNorm2d for m in norms)
    assert [m.activation for m in norms].count("relu") == 4
    assert fused.down[1].activation == "leaky_relu" and fused.down[1].negative_slope == 0.01
    assert not any(isinstance(m, (nn.ReLU, nn.LeakyReLU)) for m in fused.modules())


def test_float32_results_stay_and_checkpoints_load_both_ways(model):
    model = model.float()
    fused = kernels.fuse(copy.deepcopy(model))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    model.load_state_dict(fused.state_dict())
    fused.load_state_dict(model.state_dict())


def test_objects_stay(model):
    norm, weight = model.stem[1], model.stem[1].weight
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert kernels.fuse(model) is model
    assert model.stem[1] is norm and model.stem[1].weight is weight
    assert optimizer.param_groups[0]["params"][2] is weight


def test_hooks_stay_and_see_what_they_saw(model):
    seen, want = [], []
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    model.blocks[0].body[3] = nn.ReLU()  # an in-place one overwrites what the hook was given, fused or not
    other = copy.deepcopy(model)
    other.blocks[0].body[2].register_forward_hook(lambda m, i, o: want.append(o))
    model.blocks[0].body[2].register_forward_hook(lambda m, i, o: seen.append(o))
    kernels.fuse(model)
    torch.testing.assert_close(model(x), other(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(seen, want, rtol=1e-10, atol=1e-10)
    assert (seen[0] < 0).any()
    assert ("blocks.0.body.3", "ReLU: a hook watches it or the norm before it") in model.fuse_report.left


def test_report(model):
    report = kernels.fuse(model).fuse_report
    assert ("alone", "InstanceNorm2d") in report.replaced
    assert ("blocks.0.body.3", "ReLU merged into blocks.0.body.2") in report.replaced
    assert ("head.2", "ReLU merged into head.1") in report.replaced  # the shared activation, in this place
    assert not report.left
    text = str(report)
    assert "13 replaced, 0 left" in text and "cpu" in text
    again = kernels.fuse(model).fuse_report
    assert not again.replaced and not again.left
    pickle.loads(pickle.dumps(model))


class Odd(nn.InstanceNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class Tapped(nn.Sequential):
    def forward(self, x):
        return [x := layer(x) for layer in self]


def test_what_is_left_and_why():
    norm = nn.InstanceNorm2d(4)
    model = nn.ModuleDict(
        {
            "odd": nn.Sequential(Odd(4), nn.ReLU()),
            "one": nn.InstanceNorm1d(4),
            "lazy": nn.LazyInstanceNorm2d(),
            "tapped": Tapped(nn.InstanceNorm2d(4), nn.ReLU()),
            "shared": nn.ModuleList([nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm, nn.Tanh())]),
            "batch": nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
            "gelu": nn.Sequential(nn.InstanceNorm2d(4), nn.GELU()),
        }
    )
    parametrized = model["parametrized"] = nn.InstanceNorm2d(4, affine=True)
    torch.nn.utils.parametrize.register_parametrization(parametrized, "weight", nn.Softplus())
    x = torch.randn(2, 4, 6, 6)
    before = model["tapped"](x)
    left = dict(kernels.fuse(model).fuse_report.left)
    assert "subclass" in left["odd.0"] and "only InstanceNorm2d" in left["one"]
    assert "subclass" in left["parametrized"]
    assert "run the model once" in left["lazy"] and "forward of its own" in left["tapped"]
    assert "more than one place" in left["shared.0.1"]
    assert isinstance(model["odd"][1], nn.ReLU) and isinstance(model["gelu"][1], nn.GELU)
    assert model["gelu"][0].activation == "none"
    for a, b in zip(model["tapped"](x), before):
        torch.testing.assert_close(a, b)


def test_model_that_is_a_norm_and_bad_input():
    norm = nn.InstanceNorm2d(4)
    assert kernels.fuse(norm) is norm and type(norm) is kernels.InstanceNorm2d
    with pytest.raises(TypeError, match="model: got int"):
        kernels.fuse(3)
    with pytest.raises(TypeError, match="ScriptModule"):
        kernels.fuse(torch.jit.script(nn.Sequential(nn.ReLU())))


def test_lists_of_layers_run_one_by_one(model):
    """CUT runs its Sequential by index and collects maps on the way."""
    fused = kernels.fuse(copy.deepcopy(model))
    x = y = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    for a, b in zip(fused.stem, model.stem):
        x, y = a(x), b(y)
    torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
