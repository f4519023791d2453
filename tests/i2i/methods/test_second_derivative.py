"""Convolutions and leaky ReLUs that are differentiated twice and more, against torch's own in float64."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.orders import derivatives
from torch.utils._python_dispatch import TorchDispatchMode

from i2i.methods.losses import image_gradient
from i2i.methods.second_derivative import Differentiated
from i2i.networks import PatchDiscriminator
from i2i.networks.stargan import StarGANDiscriminator
from i2i.networks.stylegan2 import StyleGAN2Discriminator
from kernels._layout import is_channels_last

CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "unequal": {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)},
    "grouped": {"groups": 2, "padding": 1},
    "same": {"padding": "same"},
}


def tensors(groups: int = 1):
    x = golden.wave((2, 4, 7, 8)).requires_grad_()
    weight = golden.wave((6, 4 // groups, 3, 3), phase=0.4).requires_grad_()
    return x, weight, golden.wave((6,), phase=1.1).requires_grad_()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_derivatives_of_convolutions(name):
    """With a tanh behind, so that second derivatives go through the forward pass, too."""
    options = CONVOLUTIONS[name]
    given = tensors(options.get("groups", 1))

    def function(x, weight, bias):
        return F.conv2d(x, weight, bias, **options).tanh()

    wanted = derivatives(function, given)
    with Differentiated():
        found = derivatives(function, given)
    for each in zip(found, wanted, strict=True):
        torch.testing.assert_close(*each, rtol=1e-10, atol=1e-10 * float(each[1].detach().abs().max()))


@pytest.mark.parametrize("slope", [0.2, 0.0, -0.5])
@pytest.mark.parametrize("form", ["function", "module in place", "in place"])
def test_derivatives_of_leaky_relus(form, slope):
    if slope < 0 and form != "function":
        return  # torch refuses its derivative
    x = golden.wave((2, 3, 4, 5)).requires_grad_()
    calls = {
        "function": lambda x: F.leaky_relu(x, slope),
        "module in place": torch.nn.LeakyReLU(slope, inplace=True),
        "in place": lambda x: F.leaky_relu_(x, slope),
    }

    def function(x):
        z = x.square() - 0.3
        y = calls[form](z)
        assert (y.data_ptr() == z.data_ptr()) == (form != "function")
        return y

    wanted = derivatives(function, [x])
    with Differentiated():
        found = derivatives(function, [x])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def penalty(gradient):
    return (gradient.square().sum((1, 2, 3)).sqrt() - 1).square().mean()


NETWORKS = {
    "stargan": (lambda: StarGANDiscriminator(32, 4, 5, 3), 32),
    "stylegan2": (lambda: StyleGAN2Discriminator(3, (4, 6, 8)), 16),
    "patchgan": (lambda: PatchDiscriminator(3, 4, n_layers=2), 32),
}


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_penalties_of_discriminators(name, form):
    """The gradients of a penalty are those that torch's own operators give, and lie in memory as their weights do."""
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    net = build().double().to(memory_format=form)

    def judge(x):
        scores = net(x)
        return scores[0] if isinstance(scores, tuple) else scores

    x = golden.wave((2, 3, size, size)).contiguous(memory_format=form)
    weights = list(net.parameters())
    leaf = x.clone().requires_grad_()
    plain = torch.autograd.grad(judge(leaf).sum(), leaf, create_graph=True)[0]
    wanted = torch.autograd.grad(penalty(plain), weights, allow_unused=True, materialize_grads=True)
    gradient = image_gradient(judge, x)
    torch.testing.assert_close(gradient, plain, rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(penalty(gradient), weights, allow_unused=True, materialize_grads=True)
    assert max(float(g.abs().max()) for g in wanted) > 1e-3  # something to compare
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-12)
    wide = [g for g in found if g.dim() == 4 and min(g.shape[1:]) > 1 and bool(g.any())]
    assert wide and all(is_channels_last(g) == (form == torch.channels_last) for g in wide)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def test_no_gradients_of_zeros():
    """Each of D's four convolutions on the way to its scores: forward, the gradient of the image, its derivative (but
    for the last: its gradient is the scores', a constant), the weight's gradient. The biases are not in the image's
    gradient and have none."""
    net = StarGANDiscriminator(32, 4, 5, 3)
    with Seen() as seen:
        gradient = image_gradient(lambda x: net(x)[0], golden.image("x", (2, 3, 32, 32)))
        assert seen.counts["convolution"] == 4 + 1 and seen.counts["convolution_backward"] == 4  # + the labels' head
        seen.counts.clear()
        penalty(gradient).backward()
    assert seen.counts["convolution"] == 3 and seen.counts["convolution_backward"] == 4
    assert not seen.counts["zeros_like"]
    assert [p.grad is None for p in net.main.parameters()] == [False, True] * 3


def test_only_inside():
    x, weight, _ = tensors()
    with Differentiated():
        inside = F.conv2d(x, weight)
        with torch.no_grad():
            assert F.conv2d(x, weight).grad_fn is None
    assert type(inside.grad_fn).__name__ == "_ConvolutionBackward"
    assert type(F.conv2d(x, weight).grad_fn).__name__ == "ConvolutionBackward0"
