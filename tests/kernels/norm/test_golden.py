"""What the published AdaIN and layer-norm modules returned, reproduced by every implementation that runs here."""

import pytest
import torch
from support.golden import load, normal

import kernels

# The files hold float64 results stored in float32; inputs of a few thousand elements: 4 roundings of the largest value.
CLOSE = dict(rtol=0, atol=5e-6)
IMPLS = pytest.mark.parametrize("impl", ["reference", "cpu"])


def close(got, want, scale=1.0):
    want = torch.from_numpy(want)
    torch.testing.assert_close(got, want, rtol=0, atol=CLOSE["atol"] * scale * max(1.0, want.abs().max().item()))


def content(golden):
    shape = tuple(int(n) for n in golden["content_shape"])
    return (normal("content", shape) * 2 + 3).requires_grad_(), normal("g", shape)


@IMPLS
def test_adain_transfer(impl):
    golden = load("adain_transfer")
    x, g = content(golden)
    style = (normal("stylef", tuple(int(n) for n in golden["style_shape"])) * 0.5 - 1).requires_grad_()
    y = kernels.adain(x, style, impl=impl)
    dx, dstyle = torch.autograd.grad(y, (x, style), g)
    close(y.detach(), golden["output"])
    close(dx, golden["grad_content"])
    close(dstyle, golden["grad_style"])


@IMPLS
def test_adain_munit(impl):
    golden = load("adain_munit")
    x, g = content(golden)
    n, c = x.shape[:2]
    scale, shift = (normal(name, (n * c,)).view(n, c).requires_grad_() for name in ("weight", "bias"))
    y = kernels.adaptive_instance_norm(x, scale, shift, impl=impl)
    dx, dscale, dshift = torch.autograd.grad(y, (x, scale, shift), g)
    close(y.detach(), golden["output"])
    close(dx, golden["grad_x"])
    close(dscale.flatten(), golden["grad_weight"])
    close(dshift.flatten(), golden["grad_bias"])


@IMPLS
@pytest.mark.parametrize("name", ["munit_layernorm", "munit_layernorm_b1"])
def test_munit_layer_norm(impl, name):
    golden = load(name)
    x, g = content(golden)
    gamma, beta = (normal(k, (x.shape[1],)).requires_grad_() for k in ("gamma", "beta"))
    y = kernels.munit_layer_norm(x, gamma, beta, impl=impl)
    dx, dgamma, dbeta = torch.autograd.grad(y, (x, gamma, beta), g)
    close(y.detach(), golden["output"])
    close(dx, golden["grad_x"])
    close(dgamma, golden["grad_gamma"])
    close(dbeta, golden["grad_beta"])
