"""Networks by their published names."""

import pytest
import torch
from support import golden
from torch import nn

from i2i.errors import UsageError
from i2i.networks import (
    ResnetGenerator,
    discriminator,
    feature_network,
    generator,
)


def test_dropout_is_where_published_and_off_in_eval_mode():
    with torch.device("meta"):
        for name, count in {"unet_128": 2, "unet_256": 3, "resnet_6blocks": 6}.items():
            net = generator(name, ngf=4, dropout=True)
            assert sum(isinstance(module, nn.Dropout) for module in net.modules()) == count, name
    plain = ResnetGenerator(ngf=4, n_blocks=2).double()
    net = ResnetGenerator(ngf=4, n_blocks=2, dropout=True).double()
    weights = plain.state_dict().values()
    net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))  # conv_block.6 for conv_block.5
    x = golden.wave((1, 3, 16, 16))
    assert not torch.allclose(net(x), plain(x), atol=1e-3)
    torch.testing.assert_close(net.eval()(x), plain(x), atol=1e-12, rtol=0)


def test_names_are_the_published_ones():
    with torch.device("meta"):
        assert len(generator("resnet_4blocks", 1, 2, 4).model) == 27
        assert len(generator("resnet_9blocks", 1, 2, 4, antialias_down=False).model) == 30
        assert [generator(f"unet_{size}", 1, 2, 4).num_downs for size in (128, 256)] == [7, 8]
        assert generator("stylegan2", 1, 2, 4).tap_channels((0, 1, 2)) == [1, 8, 16]
        for name, layers in {"basic": 3, "n_layers": 5}.items():
            assert len(discriminator(name, 1, 4, n_layers=5, antialias=False).model) == 3 * layers + 3
        for name in ("pixel", "stylegan2"):
            assert next(discriminator(name, 1, 4).parameters()).shape == (4, 1, 1, 1)
    for build, message in {
        lambda: generator("resnet_blocks"): "generator must be one of resnet_.*, got 'resnet_blocks'",
        lambda: generator("unet_100"): "generator must be one of resnet_.*, got 'unet_100'",
        lambda: discriminator("patch"): "discriminator must be one of basic, .*, got 'patch'",
        lambda: feature_network("global_pool", [3]): "feature network must be one of .*, got 'global_pool'",
        lambda: generator("unet_256", ngf=4, norm="layer"): "norm must be one of instance, batch, none, got 'layer'",
    }.items():
        with pytest.raises(UsageError, match=message):
            build()
