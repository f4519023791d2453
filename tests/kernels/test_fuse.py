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
    assert ("blocks.0.body.0", "ReflectionPad2d") in report.replaced
    assert ("blocks.0.body.4", "ReflectionPad2d merged into blocks.0.body.2") in report.replaced
    assert not report.left
    text = str(report)
    assert "19 replaced, 0 left" in text and "cpu" in text
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


# ---- antialiased sampling and padding --------------------------------------------------------------------------------


class Smaller(nn.Module):
    """Antialiased sampling in the manner of CUT; `size` and `scale` choose filters that are not its own."""

    def __init__(self, channels, size=3, stride=2, scale=1.0, pad=nn.ReflectionPad2d):
        super().__init__()
        row = torch.tensor({2: [1.0, 1.0], 3: [1.0, 2.0, 1.0], 5: [1.0, 4.0, 6.0, 4.0, 1.0]}[size])
        filt = torch.outer(row, row) / row.sum() ** 2 * scale
        self.register_buffer("filt", filt[None, None].repeat(channels, 1, 1, 1))
        self.stride = stride
        self.pad = pad([(size - 1) // 2, size // 2] * 2)

    def forward(self, x):
        return nn.functional.conv2d(self.pad(x), self.filt, stride=self.stride, groups=x.shape[1])


class Larger(nn.Module):
    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("filt", (torch.outer(row, row) / 16)[None, None].repeat(channels, 1, 1, 1))
        self.pad = nn.ReplicationPad2d([1, 1, 1, 1])

    def forward(self, x):
        y = nn.functional.conv_transpose2d(self.pad(x), self.filt, stride=2, padding=2, groups=x.shape[1])
        return y[:, :, 1:, 1:][:, :, :-1, :-1]


def sampling() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, 6, 7, bias=False),
        nn.InstanceNorm2d(6),
        nn.ReLU(True),
        Smaller(6),
        Smaller(6, 5),
        Larger(6),
        nn.InstanceNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.ReflectionPad2d(2),
        nn.ReflectionPad2d((1, 2, 0, 1)),
        nn.Conv2d(6, 3, 3),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sampling_and_padding_are_known_by_what_they_do(dtype):
    model = sampling().to(dtype)
    fused = kernels.fuse(copy.deepcopy(model))
    kinds = {4: kernels.BlurDownsample, 5: kernels.BlurDownsample, 6: kernels.BlurUpsample, 9: nn.Identity}
    assert {i: type(fused[i]) for i in kinds} == kinds
    assert type(fused[0]) is type(fused[10]) is kernels.ReflectionPad2d and fused[5].filter_size == 5
    assert fused[7].padding == 2 and fused[7].activation == "leaky_relu"
    assert list(fused.state_dict()) == list(model.state_dict())
    for name, t in model.state_dict().items():
        assert torch.equal(fused.state_dict()[name], t)
    fused.load_state_dict(model.state_dict())
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for size in ((16, 16), (19, 22)):
        x = torch.randn(2, 3, *size, dtype=dtype)
        for a, b in zip(gradients(fused, x), gradients(model, x)):
            torch.testing.assert_close(a, b, **tolerance)
    again = kernels.fuse(fused).fuse_report
    assert not again.replaced and not again.left
    pickle.loads(pickle.dumps(fused))


def test_sampling_keeps_its_hooks_and_objects():
    model, seen = sampling(), []
    blur, filt = model[4], model[4].filt
    blur.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    kernels.fuse(model)(torch.randn(1, 3, 16, 16))
    assert model[4] is blur and blur.filt is filt and seen == [(1, 6, 8, 8)]


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Smaller(4, scale=2.0), "none of the published ones"),
        (Smaller(4, stride=1), "computes something else"),
        (Smaller(4, pad=nn.ReplicationPad2d), "computes something else"),
    ],
    ids=["scale", "stride", "border"],
)
def test_other_filters_are_left(module, why):
    x = torch.randn(1, 4, 9, 8)
    before = module(x)
    report = kernels.fuse(module).fuse_report
    assert len(report.left) == 1 and why in report.left[0][1] and type(module) is Smaller
    assert torch.equal(module(x), before)


def test_what_cannot_be_tried_is_left_as_it_is():
    class Broken(Smaller):
        def forward(self, x):
            raise KeyError("no map")

    model = nn.ModuleDict({"broken": Broken(4), "meta": Smaller(4).to("meta"), "crop": nn.ReflectionPad2d(-1)})
    left = dict(kernels.fuse(model).fuse_report.left)
    assert "KeyError: 'no map'" in left["broken"] and "no numbers yet" in left["meta"] and "crops" in left["crop"]
    assert type(model["crop"]) is nn.ReflectionPad2d and type(model["meta"]) is Smaller


class Weighted(Smaller):
    def __init__(self):
        super().__init__(4)
        self.gain = nn.Parameter(torch.ones(()))


def test_modules_that_only_look_alike_are_left_in_silence():
    for module in (Weighted(), nn.Sequential(nn.ReplicationPad2d(1)), nn.ZeroPad2d(1)):
        kind = type(module)
        report = kernels.fuse(module).fuse_report
        assert type(module) is kind and not report.left
        assert all(what == "ReflectionPad2d" for _, what in report.replaced)


def test_paddings_that_are_not_merged():
    norm = nn.InstanceNorm2d(4)
    watched = nn.Sequential(nn.InstanceNorm2d(4), nn.ReflectionPad2d(1))
    watched[1].register_forward_pre_hook(lambda m, i: None)
    shared = nn.ModuleList([nn.Sequential(norm, nn.ReflectionPad2d(1)), nn.Sequential(norm)])
    uneven = nn.Sequential(nn.InstanceNorm2d(4), nn.ReflectionPad2d((1, 0, 1, 0)))
    apart = nn.Sequential(nn.InstanceNorm2d(4), nn.GELU(), nn.ReflectionPad2d(1))
    model = nn.ModuleDict({"watched": watched, "shared": shared, "uneven": uneven, "apart": apart})
    left = dict(kernels.fuse(model).fuse_report.left)
    assert "hook" in left["watched.1"] and "more than one place" in left["shared.0.1"] and len(left) == 2
    for sequence in (watched, shared[0], uneven, apart):
        assert sequence[0].padding == 0 and type(sequence[-1]) is kernels.ReflectionPad2d
