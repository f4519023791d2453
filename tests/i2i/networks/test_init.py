"""Initial weights."""

import pytest
import torch

from i2i.errors import UsageError
from i2i.networks import (
    ResnetGenerator,
    generator,
    init_weights,
)

STANDARD_DEVIATIONS = {  # of the weights of a convolution 16 -> 32, 3 x 3, for gain 0.02
    "xavier": 0.02 * (2 / (9 * (16 + 32))) ** 0.5,
    "normal": 0.02,
    "kaiming": (2 / (9 * 16)) ** 0.5,
    "orthogonal": 0.02 * (9 * 16) ** -0.5,
}


@pytest.mark.parametrize("init_type", STANDARD_DEVIATIONS)
def test_initialisation(init_type):
    net = init_weights(ResnetGenerator(ngf=16, n_blocks=1), init_type)
    weight = net.model[4].weight.detach()  # 32 x 16 x 3 x 3
    assert float(weight.std()) == pytest.approx(STANDARD_DEVIATIONS[init_type], rel=0.1)
    if init_type == "orthogonal":
        rows = weight.flatten(1)
        torch.testing.assert_close(rows @ rows.T, 0.02**2 * torch.eye(32), atol=1e-8, rtol=0)
    assert not net.model[4].bias.any()
    assert float(net.model[7].filt.sum()) == 32.0  # fixed filters stay


def test_default_initialisation_is_that_of_cut():
    nets = [ResnetGenerator(ngf=4, n_blocks=1) for _ in range(2)]
    for net, options in zip(nets, ((), ("xavier", 0.02)), strict=True):
        torch.manual_seed(0)
        init_weights(net, *options)
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), atol=0, rtol=0)


def test_initialisation_of_batch_norms_and_of_what_it_leaves_alone():
    norm = init_weights(generator("unet_128", ngf=16, norm="batch"), "normal").model.model[1].model[3].model[6]
    assert float(norm.weight.detach().mean()) == pytest.approx(1.0, abs=0.02)
    assert float(norm.weight.detach().std()) == pytest.approx(0.02, rel=0.4)
    assert not norm.bias.any()
    net = generator("stylegan2", ngf=1, size=64)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    torch.testing.assert_close(init_weights(net).state_dict(), before, atol=0, rtol=0)
    with pytest.raises(UsageError, match="init_type must be one of xavier, .*, got 'uniform'"):
        init_weights(net, "uniform")
