"""U-Nets against plain torch in the published order."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from torch import nn

from i2i.errors import UsageError
from i2i.networks import (
    UnetGenerator,
)


def plain_unet(state, x, norm, depth):
    """The published order of work: leaky ReLU in place, so that the skip has it too; ReLU on the concatenation."""

    def convolve(key, x, function=F.conv2d):
        return function(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride=2, padding=1)

    def normalise(key, x):
        if norm == "none":
            return x
        if norm == "instance":
            return F.instance_norm(x)
        return F.batch_norm(x, None, None, state[f"{key}.weight"], state[f"{key}.bias"], training=True)

    def level(key, x, left):
        skip = F.leaky_relu(x, 0.2)
        h = convolve(f"{key}.1", skip)
        if left == 1:
            h = normalise(f"{key}.4", convolve(f"{key}.3", h.relu(), F.conv_transpose2d))
        else:
            h = level(f"{key}.3.model", normalise(f"{key}.2", h), left - 1)
            h = normalise(f"{key}.6", convolve(f"{key}.5", h.relu(), F.conv_transpose2d))
        return torch.cat([skip, h], 1)

    h = level("model.model.1.model", convolve("model.model.0", x), depth - 1)
    return convolve("model.model.3", h.relu(), F.conv_transpose2d).tanh()


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_unet_computes_the_published_order(norm):
    net = UnetGenerator(2, 3, 4, 5, norm=norm).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = golden.wave((2, 2, 32, 64))
    wanted = plain_unet(dict(net.named_parameters()), x, norm, 5)
    torch.testing.assert_close(net(x), wanted, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad((y**3).sum(), net.parameters()) for y in (net(x), wanted)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)


def test_unet_refuses_sizes_it_cannot_halve():
    net = UnetGenerator(ngf=4, num_downs=5)
    with pytest.raises(UsageError, match="sides that are multiples of 32, got 64 x 48"):
        net(torch.zeros(1, 3, 64, 48))
    with pytest.raises(UsageError, match="num_downs must be at least 5, got 4"):
        UnetGenerator(num_downs=4)
