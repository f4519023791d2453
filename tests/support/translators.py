"""Small generators with known weights."""

import torch
from support import golden

from i2i.networks import ResnetGenerator, init_weights


def small(**options):
    torch.manual_seed(0)
    return init_weights(ResnetGenerator(**{"ngf": 4, "n_blocks": 1} | options), gain=1.0)


def filled(**options):
    net = ResnetGenerator(**{"ngf": 4, "n_blocks": 1} | options)
    golden.fill(net)
    return net
