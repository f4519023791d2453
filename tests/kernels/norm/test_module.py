"""The modules against torch's own: state, running statistics, repr, copies."""

import copy
import io
import pickle

import pytest
import torch
from support.numerics import make
from torch import nn

import kernels

SPACE = {1: (35,), 2: (7, 5), 3: (3, 4, 5)}  # sizes of a plane, by the norm's dimensions
DIMS = pytest.mark.parametrize("dims", SPACE, ids="{}d".format)


def twins(dims=2, **options):
    torch.manual_seed(0)
    theirs = getattr(nn, f"InstanceNorm{dims}d")(6, **options)
    if theirs.weight is not None:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours = getattr(kernels, type(theirs).__name__)(6, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@DIMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": True},
        {"affine": True, "track_running_stats": True},
        {"track_running_stats": True, "momentum": None},
    ],
    ids=str,
)
def test_is_torchs_instance_norm(options, impl, dtype, dims):
    ours, theirs = twins(dims, **options)
    ours.impl = impl
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    close = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=1e-12, atol=1e-12)
    for step in range(3):
        x = make((3, 6, *SPACE[dims]), seed=step, mean=4.0)["x"].to(dtype)
        torch.testing.assert_close(ours(x), theirs(x), **close)
    for name, t in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], t, **close)
    ours.eval(), theirs.eval()
    for size in ((3, 6, *SPACE[dims]), (6, *SPACE[dims])):  # unbatched too
        x = torch.randn(size, dtype=dtype, requires_grad=True)
        y, want = ours(x), theirs(x)
        torch.testing.assert_close(y, want, **close)
        g = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(want, x, g), **close)


def test_running_variance_of_nearly_constant_planes():
    """Recovered from 1 / sqrt(var + eps) it would be lost; the kernels hand the variance itself out."""
    ours, theirs = twins(track_running_stats=True, momentum=1.0)
    x = make((2, 6, 32, 32), std=1e-5)["x"]
    ours(x.float())
    theirs.double()(x.float().double())
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{"affine": True}, {"affine": True, "track_running_stats": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_volumes_stay_channels_last(dtype, options, training):
    """Values, gradients and statistics are those of torch on contiguous maps; its own way through channels_last_3d is
    by copies."""
    ours, theirs = (module.train(training) for module in twins(3, **options))
    theirs = theirs.double()
    ours.activation, ours.negative_slope = "leaky_relu", 0.01
    x = make((2, 6, 5, 7, 3), mean=4.0)["x"].to(dtype)
    residual, g = (make(x.shape, seed=seed)["x"].to(dtype) for seed in (1, 2))
    exact = [t.double().requires_grad_() for t in (x, residual)]
    want = nn.functional.leaky_relu(theirs(exact[0]), 0.01) + exact[1]
    wanted = [want, *torch.autograd.grad(want, [*exact, *theirs.parameters()], g.double())]
    given = [t.contiguous(memory_format=torch.channels_last_3d).requires_grad_() for t in (x, residual)]
    y = ours(*given)
    got = [y, *torch.autograd.grad(y, [*given, *ours.parameters()], g)]
    close = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for mine, exactly in zip(got, wanted):
        torch.testing.assert_close(mine.double(), exactly, rtol=close, atol=close * exactly.abs().max().item())
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last_3d)
    for name, t in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].double(), t.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 3])
def test_unbatched_with_activation_and_residual(dims):
    x, residual = (torch.randn(6, *SPACE[dims]) for _ in range(2))
    module = getattr(kernels, f"InstanceNorm{dims}d")(6, affine=True, activation="relu")
    theirs = getattr(nn, f"InstanceNorm{dims}d")(6)
    torch.testing.assert_close(module(x, residual), theirs(x).relu() + residual)


@DIMS
def test_state_dict_both_ways_and_isinstance(dims):
    ours, theirs = twins(dims, affine=True, track_running_stats=True)
    assert isinstance(ours, type(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert not list(kernels.InstanceNorm2d(6).state_dict())
    assert list(kernels.MunitLayerNorm(6).state_dict()) == ["gamma", "beta"]
    assert not list(kernels.AdaptiveInstanceNorm2d(6).state_dict())


def test_repr():
    for dims in SPACE:
        ours, theirs = twins(dims, affine=True)
        assert repr(ours) == repr(theirs)
    volumes = kernels.InstanceNorm3d(6, activation="leaky_relu", negative_slope=0.01)
    assert "activation=leaky_relu, negative_slope=0.01)" in repr(volumes)
    fused = kernels.InstanceNorm2d(6, activation="leaky_relu", padding=1, impl="reference")
    for part in ("activation=leaky_relu", "negative_slope=0.2", "padding=1", "impl=reference"):
        assert part in repr(fused)
    assert repr(kernels.MunitLayerNorm(6)) == "MunitLayerNorm(6, eps=1e-05, affine=True)"
    assert repr(kernels.AdaptiveInstanceNorm2d(6)) == "AdaptiveInstanceNorm2d(6, eps=1e-05, unit_offset=False)"


@pytest.mark.parametrize(
    "module",
    [
        kernels.InstanceNorm2d(6, affine=True, track_running_stats=True, activation="relu", padding=1),
        kernels.InstanceNorm1d(6, affine=True, activation="relu"),
        kernels.InstanceNorm3d(6, affine=True, activation="leaky_relu", negative_slope=0.01),
        kernels.MunitLayerNorm(6, activation="tanh"),
    ],
    ids=lambda m: type(m).__name__,
)
def test_copies(module):
    dims = {kernels.InstanceNorm1d: 1, kernels.InstanceNorm3d: 3}.get(type(module), 2)
    x = torch.randn(2, 6, *SPACE[dims])
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(saved, weights_only=False)]
    want = copy.deepcopy(module)(x)
    for other in copies:
        assert repr(other) == repr(module)
        torch.testing.assert_close(other(x), want)


def test_munit_layer_norm_starts_as_published():
    norm = kernels.MunitLayerNorm(4096)
    assert 0 <= norm.gamma.min() and 0.9 < norm.gamma.max() < 1 and 0.45 < norm.gamma.mean() < 0.55
    assert not norm.beta.any()
    assert kernels.MunitLayerNorm(4, affine=False)(torch.randn(1, 4, 3, 3)).shape == (1, 4, 3, 3)


def test_adaptive_module():
    x, scale, shift = torch.randn(2, 6, 5, 5), torch.randn(2, 6), torch.randn(2, 6)
    module = kernels.AdaptiveInstanceNorm2d(6, unit_offset=True, activation="relu", padding=1)
    want = kernels.adaptive_instance_norm(x, scale, shift, unit_offset=True, activation="relu", residual=x, padding=1)
    torch.testing.assert_close(module(x, scale, shift, residual=x), want)


def test_epilogue_in_every_mode():
    x = torch.randn(2, 6, 5, 7)
    for options in ({}, {"track_running_stats": True}):
        module = kernels.InstanceNorm2d(6, activation="relu", padding=2, **options)
        for training in (True, False):
            module.train(training)
            plain = kernels.InstanceNorm2d(6, **options).train(training)
            plain.load_state_dict(module.state_dict())
            want = nn.functional.pad(plain(x).relu() + x, (2, 2, 2, 2), mode="reflect")
            torch.testing.assert_close(module(x, residual=x), want)


def test_bad_input():
    norm = kernels.InstanceNorm2d(6, affine=True)
    with pytest.raises(ValueError, match="x: got 5 channels"):
        norm(torch.randn(2, 5, 4, 4))
    with pytest.warns(UserWarning, match="x: got 5 channels"):  # as torch, which needs the number for nothing here
        kernels.InstanceNorm2d(6)(torch.randn(2, 5, 4, 4))
    with pytest.raises(ValueError, match="3D or 4D"):
        norm(torch.randn(2, 6))
    with pytest.raises(TypeError, match="x: got list"):
        norm([1])
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm(torch.randn(2, 6, 1, 1))
    tracking = kernels.InstanceNorm2d(6, track_running_stats=True, padding=4).eval()
    with pytest.raises(ValueError, match="padding: got 4"):
        tracking(torch.randn(2, 6, 4, 4))
    assert kernels.InstanceNorm2d(6, track_running_stats=True).eval()(torch.randn(2, 6, 1, 1)).shape == (2, 6, 1, 1)
    for options, text in (
        ({"activation": "gelu"}, "activation"),
        ({"padding": -1}, "padding"),
        ({"impl": "x"}, "impl"),
    ):
        with pytest.raises(ValueError, match=text):
            kernels.InstanceNorm2d(6, **options)


@pytest.mark.parametrize(
    "dims, text", [(1, "2D or 3D input.*6D"), (2, "3D or 4D input.*6D"), (3, "4D or 5D input.*6D")]
)
def test_bad_input_of_every_dimension(dims, text):
    kind = getattr(kernels, f"InstanceNorm{dims}d")
    module = kind(6, affine=True)
    with pytest.raises(ValueError, match=text):
        module(torch.randn(1, 6, 1, 2, 2, 2))
    with pytest.raises(ValueError, match="x: got 5 channels"):
        module(torch.randn(2, 5, *SPACE[dims]))
    with pytest.raises(TypeError, match=r"x: got list, want a tensor of shape \(N, C, .*\)"):
        module([1])
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        module(torch.randn(2, 6, *(1,) * dims))
    with pytest.raises(ValueError, match="residual: got shape"):
        module(torch.randn(2, 6, *SPACE[dims]), torch.randn(2, 6, *(2,) * dims))
    if dims != 2:  # reflection padding is of images
        assert module.padding == 0
        with pytest.raises(TypeError, match="padding"):
            kind(6, padding=1)
        with pytest.raises(ValueError, match="padding: got 1 for x of shape"):
            module.run(torch.randn(2, 6, *SPACE[dims]), None, "relu", 0.2, 1)


def test_statistics_switched_by_hand():
    """As torch: without tracking a module with buffers normalises by the planes, and goes on updating them."""
    ours, theirs = twins(track_running_stats=True)
    for module in (ours, theirs):
        module.eval()
        module.track_running_stats = False
    x = make((3, 6, 7, 5), mean=4.0)["x"].float()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    for name, t in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], t, rtol=1e-5, atol=1e-5)
    without = kernels.InstanceNorm2d(6).eval()
    without.track_running_stats = True
    with pytest.raises(ValueError, match="running_mean: got None"):
        without(x)
    with pytest.raises(TypeError, match="x: got torch.int64"):  # would have been cut to integers in silence
        kernels.InstanceNorm2d(6, track_running_stats=True).eval()(x.long())
