"""kernels.fuse on antialiased sampling and padding: known by what it does, kept as it is, and right when it changes."""

import copy
import pickle

import pytest
import torch
from support.fuse_cases import Larger, Smaller, check_same, count_blurs, fused_copy, sampling
from torch import nn

import kernels

X = torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sampling_and_padding_are_known_by_what_they_do(dtype, monkeypatch):
    model = sampling().to(dtype)
    fused = fused_copy(model)
    blurs = {"4": "BlurDownsample, filter size 3", "5": "BlurDownsample, filter size 5", "6": "BlurUpsample"}
    assert blurs.items() <= dict(fused.fuse_report.replaced).items()
    assert "9" in dict(fused.fuse_report.merged) and "10" in dict(fused.fuse_report.replaced)
    assert [isinstance(fused[i], Smaller) for i in (4, 5)] == [True, True] and isinstance(fused[6], Larger)
    assert list(fused.state_dict()) == list(model.state_dict())
    for name, t in model.state_dict().items():
        assert torch.equal(fused.state_dict()[name], t)
    fused.load_state_dict(model.state_dict())
    seen = count_blurs(monkeypatch)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    for size in ((16, 16), (19, 22)):
        check_same(fused, model, torch.randn(2, 3, *size, dtype=dtype), tolerance)
    assert seen == ["blur_downsample", "blur_downsample", "blur_upsample"] * 4
    assert kernels.fuse(fused).fuse_report == fused_copy(model).fuse_report
    seen.clear()
    copied = pickle.loads(pickle.dumps(fused))
    x = torch.randn(1, 3, 16, 16, dtype=dtype)
    assert torch.equal(copied(x), fused(x)) and len(seen) == 6


def test_sampling_keeps_its_hooks_and_objects():
    model, seen = sampling(), []
    blur, filt, pad = model[4], model[4].filt, model[4].pad
    blur.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    kernels.fuse(model)(torch.randn(1, 3, 16, 16))
    assert model[4] is blur and blur.filt is filt and blur.pad is pad and seen == [(1, 6, 8, 8)]


CHANGES = {
    "filter in place": lambda m: m.filt.mul_(2),
    "filter loaded": lambda m: m.load_state_dict({"filt": m.filt * 2}),
    "filter assigned": lambda m: setattr(m, "filt", m.filt * 2),
    "buffer replaced": lambda m: m._buffers.update(filt=m.filt * 2),
    "stride": lambda m: setattr(m, "stride", 1),
    "pad replaced": lambda m: setattr(m, "pad", nn.ReplicationPad2d(1)),
    "padding": lambda m: setattr(m.pad, "padding", (0, 2, 1, 1)),
    "hook on the pad": lambda m: m.pad.register_forward_hook(lambda pad, args, y: y + 1),
    "forward of the pad": lambda m: setattr(m.pad, "forward", lambda x: nn.functional.pad(x, (1, 1, 1, 1))),
    "forward": lambda m: setattr(m, "forward", lambda x: x * 2),
}


@pytest.mark.parametrize("first", ["change", "fuse"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes(change, first, monkeypatch):
    model = Smaller(4).double()
    fused = fused_copy(model)
    seen = count_blurs(monkeypatch)
    fused(X)
    assert len(seen) == 1
    for m in (model, fused):
        CHANGES[change](m)
    if first == "change":
        fused = fused_copy(model)
        assert "" in dict(fused.fuse_report.left)
    seen.clear()
    torch.testing.assert_close(fused(X), model(X), rtol=1e-12, atol=1e-12)
    assert not seen


def test_what_changes_nothing_leaves_the_operator_in_place(monkeypatch):
    model = kernels.fuse(Smaller(4)).double()
    model.load_state_dict(model.state_dict())
    model.eval().train()
    model.register_full_backward_hook(lambda m, given, got: None)
    model.filt.mul_(2).div_(2)
    seen = count_blurs(monkeypatch)
    for m in (model, copy.deepcopy(model), model.to(torch.bfloat16)):
        m(X.to(m.filt.dtype))
    assert len(seen) == 3


def test_the_next_fuse_tries_again(monkeypatch):
    model = kernels.fuse(Smaller(4))
    model.stride = 1
    assert "computes something else" in dict(kernels.fuse(model).fuse_report.left)[""]
    model.stride = 2
    seen = count_blurs(monkeypatch)
    assert dict(kernels.fuse(model).fuse_report.replaced)[""] == "BlurDownsample, filter size 3"
    seen.clear()
    model(X.float())
    another = type(model)(4)  # code that makes more of the same
    torch.testing.assert_close(another(X.float()), model(X.float()))
    assert len(seen) == 2 and type(model).__mro__.count(Smaller) == 1


def test_other_inputs_go_where_they_went(monkeypatch):
    model = Smaller(4).double()
    fused = fused_copy(model)
    seen = count_blurs(monkeypatch)
    other = (model.filt * 2,)
    got, want = (torch.func.functional_call(m, {"filt": other[0]}, (X,)) for m in (fused, model))
    torch.testing.assert_close(got, want)
    one = X[0, :, :4]  # unbatched: four channels, four rows
    torch.testing.assert_close(fused(one), model(one))
    filters = torch.stack([model.filt, model.filt * 2])
    got, want = (
        torch.func.vmap(lambda f, m=m: torch.func.functional_call(m, {"filt": f}, (X,)))(filters)
        for m in (fused, model)
    )
    torch.testing.assert_close(got, want)
    assert not seen
    with pytest.raises(RuntimeError):
        fused(X[:, :3])


def test_compiled(monkeypatch):
    seen = count_blurs(monkeypatch)
    for change in (None, "filter in place", "padding"):
        model = Smaller(4)
        fused = fused_copy(model)
        if change:
            CHANGES[change](model), CHANGES[change](fused)
        torch._dynamo.reset()
        seen.clear()
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X.float()), model(X.float()))
        assert len(seen) == (not change)


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
    left = dict(kernels.fuse(module).fuse_report.left)
    assert why in left[""] and type(module) is Smaller
    assert torch.equal(module(x), before)


class Moody(Smaller):
    def __init__(self, difference):
        super().__init__(4)
        self.difference = difference

    def forward(self, x):
        y = super().forward(x)
        return {"eval": y if self.training else y + 1, "gradient": y.detach() + 0 * y, "pair": (y, y)}[self.difference]


@pytest.mark.parametrize("difference", ["eval", "gradient", "pair"])
def test_what_differs_in_one_mode_or_in_its_gradient_is_left(difference):
    module = Moody(difference).eval()
    assert "computes something else" in dict(kernels.fuse(module).fuse_report.left)[""]
    assert type(module) is Moody and not module.training


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


def test_another_default_device():
    model = nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU(), Smaller(4))
    torch.set_default_device("meta")  # stands for "cuda"
    try:
        replaced = dict(kernels.fuse(model).fuse_report.replaced)
        assert kernels.blur_downsample(X, impl="reference").device == X.device
        assert kernels.BlurDownsample(4).filt.device.type == "meta"
    finally:
        torch.set_default_device(None)
    assert replaced["2"] == "BlurDownsample, filter size 3"


def test_inside_inference_mode():
    with torch.inference_mode():
        model = nn.Sequential(Smaller(4), nn.InstanceNorm2d(4), nn.ReLU())
        want = model(X.float())
        torch.testing.assert_close(kernels.fuse(model)(X.float()), want)
    model = Smaller(4)
    with torch.inference_mode():
        assert kernels.fuse(model).fuse_report.replaced
        torch.testing.assert_close(model(X.float()), Smaller(4)(X.float()))


# ---- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64, torch.complex128])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_maps_that_are_not_floating_are_padded_by_torch(dtype, impl):
    pad = nn.ReflectionPad2d((1, 2, 0, 1))
    for x in (torch.arange(40).reshape(1, 2, 4, 5), torch.arange(20).reshape(1, 4, 5)):
        x = x.to(dtype)
        want = pad(x)
        fused = fused_copy(pad)
        fused.impl = impl
        assert torch.equal(fused(x), want) and fused(x).dtype == dtype
    with pytest.raises(TypeError, match="x: got"):
        kernels.ReflectionPad2d(1, impl="cpu")(x)


def test_a_padding_of_nothing_is_no_alias():
    model = kernels.fuse(nn.Sequential(nn.ReflectionPad2d(0), nn.ReLU(True)))
    x = torch.randn(1, 2, 4, 4)
    before = x.clone()
    assert torch.equal(model(x), before.relu()) and torch.equal(x, before)


def test_paddings_that_are_not_merged():
    watched = nn.Sequential(nn.InstanceNorm2d(4), nn.ReflectionPad2d(1))
    watched[1].register_forward_pre_hook(lambda m, i: None)
    uneven = nn.Sequential(nn.InstanceNorm2d(4), nn.ReflectionPad2d((1, 0, 1, 0)))
    apart = nn.Sequential(nn.InstanceNorm2d(4), nn.GELU(), nn.ReflectionPad2d(1))
    model = nn.ModuleDict({"watched": watched, "uneven": uneven, "apart": apart})
    report = kernels.fuse(model).fuse_report
    assert [name for name, why in report.left if "hook" in why] == ["watched.1"] and len(report.left) == 1
    assert not report.merged and len(report.replaced) == 6
    for sequence in (watched, uneven, apart):
        assert type(sequence) is nn.Sequential and type(sequence[-1]) is kernels.ReflectionPad2d
