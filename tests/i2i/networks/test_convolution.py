"""Convolutions as products of matrices, against torch's own in float64: values, derivatives, order in memory."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.orders import derivatives

from i2i.networks import convolution
from i2i.networks.convolution import Conv2d, Options, by_products
from i2i.networks.stargan import StarGANDiscriminator
from kernels._layout import is_channels_last

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "unequal": {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)},
    "one pixel": {"kernel_size": 1},
}


@pytest.fixture
def small(monkeypatch):
    """Small weights are products, too."""
    monkeypatch.setattr(convolution, "LEAST", 0)


@pytest.fixture
def products(monkeypatch):
    """How many products of matrices there were."""
    calls, matrix = [], convolution.matrix
    monkeypatch.setattr(convolution, "matrix", lambda weight: calls.append(1) or matrix(weight))
    return calls


def made(form, kernel_size=3, **options):
    layer = Conv2d(4, 60, kernel_size, **options).double().to(memory_format=FORMATS[form])
    with torch.no_grad():
        layer.weight.copy_(golden.wave(layer.weight.shape))
    return layer


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("of_weight", FORMATS)
@pytest.mark.parametrize("of_map", FORMATS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_values_and_derivatives(name, of_map, of_weight, products):
    """With a leaky ReLU behind that works in place, and what bends behind that."""
    layer = made(of_weight, **CONVOLUTIONS[name])
    x = golden.wave((1, 4, 7, 8)).contiguous(memory_format=FORMATS[of_map]).requires_grad_()
    given = [x, layer.weight, layer.bias]
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    wanted = derivatives(lambda x, *p: F.leaky_relu_(F.conv2d(x, *p, *options), 0.2).tanh(), given)
    assert not products
    found = derivatives(lambda x, *p: F.leaky_relu_(convolution.conv2d(x, *p, *options), 0.2).tanh(), given)
    assert len(products) > 10
    for each in zip(found, wanted, strict=True):
        torch.testing.assert_close(*each, rtol=1e-10, atol=1e-10 * float(each[1].detach().abs().max()))
    assert torch.equal(layer(x), convolution.conv2d(*given, *options))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", FORMATS)
def test_order_in_memory(form):
    layer = made(form, stride=2, padding=1)
    x = golden.wave((1, 4, 7, 8)).contiguous(memory_format=FORMATS[form]).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    for tensor in (y, x.grad, layer.weight.grad):
        assert is_channels_last(tensor) == (form == "channels last")


@pytest.mark.usefixtures("small")
def test_autocast(products):
    """Maps and gradients have the dtypes of torch's own under autocast."""
    layer = made("channels last").float()
    x = golden.wave((1, 4, 7, 8)).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    assert products and y.dtype == torch.bfloat16 and x.grad.dtype == layer.weight.grad.dtype == torch.float32
    wanted = F.conv2d(x.double(), layer.weight.double(), layer.bias.double()).detach()
    torch.testing.assert_close(y.double(), wanted, atol=0.02 * float(wanted.abs().max()), rtol=0)  # 8 bits


def test_where_they_are_taken():
    """Of StarGAN's discriminator the last two layers, at batches of 4 and of both kinds of 16."""
    net = StarGANDiscriminator(128, 64, 5, 6)
    options = Options.of(2, 1, 1, 1)
    for count in (4, 32):
        side, found = 128, []
        for layer in net.main[::2]:
            x = torch.empty(count, layer.in_channels, side, side, device="meta")
            assert not by_products(x, layer.weight, options)
            found.append(by_products(torch.empty(x.shape), layer.weight, options))
            side //= 2
        assert found == ([False] * 3 + [True] * 3 if count == 4 else [False] * 4 + [True] * 2)
    assert all(type(layer) is Conv2d for layer in net.main[::2])
    weight = torch.empty(2048, 512, 1, 1)
    assert by_products(torch.empty(1, 512, 3, 3), weight, Options.of(1, 0, 1, 1))
    assert not by_products(torch.empty(0, 512, 3, 3), weight, Options.of(1, 0, 1, 1))
    assert not by_products(torch.empty(1, 1024, 3, 3), weight, Options.of(1, 0, 1, 2))
