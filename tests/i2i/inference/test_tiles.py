"""Tiles: the result is the untiled one, memory does not grow with the image, and what cannot be cut is refused."""

import pytest
import torch
from support import golden
from torch import nn

import kernels
from i2i.errors import UsageError
from i2i.inference.tiles import Moments, plan, translate_tiled
from i2i.networks import ResnetGenerator, UnetGenerator, init_weights


def generator(dtype=torch.float64, **options):
    """With golden weights, which are as sensitive as weights get: statistics per tile change its result by over 1."""
    net = ResnetGenerator(**{"ngf": 4, "n_blocks": 2} | options)
    golden.fill(net)
    return net.to(dtype)


def chain(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers, nn.Conv2d(4, 3, 3, padding=1)).double()


@pytest.mark.parametrize("tile", [21, 40, 1000])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("down", [True, False])
@torch.no_grad()
def test_tiles_make_the_untiled_image(down, up, tile):
    net = generator(antialias_down=down, antialias_up=up)
    x = golden.wave((1, 3, 56, 72))
    # float64: 1e-12 was measured; in float32 the same network rounds to 1e-5
    torch.testing.assert_close(translate_tiled(net, x, tile), net(x), atol=1e-10, rtol=0)


@torch.no_grad()
def test_in_float32_and_without_shared_statistics():
    net = generator(torch.float32, ngf=8, n_blocks=9)
    x = golden.image("x", (1, 3, 96, 64))
    whole = net(x)
    torch.testing.assert_close(translate_tiled(net, x, 48), whole, atol=1e-4, rtol=0)
    naive = torch.cat([net(half) for half in x.chunk(2, dim=2)], dim=2)
    assert float((naive - whole).abs().max()) > 0.1  # what the tiles are spared


@torch.no_grad()
def test_in_bfloat16():
    net = init_weights(ResnetGenerator(ngf=8, n_blocks=2))
    x = golden.image("x", (1, 3, 64, 64))
    wanted = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        untiled, tiled = net(x).float(), translate_tiled(net, x, 32).float()
    # both round to 8 bits of mantissa on the way, at places of their own
    assert (tiled - wanted).abs().mean() < 1.5 * (untiled - wanted).abs().mean()


def test_memory_does_not_grow_with_the_image():
    net = generator(torch.float32)
    largest = []
    for module in net.modules():
        module.register_forward_hook(lambda _m, _x, y: largest.append(y.numel()))
    peaks = []
    for side in (96, 192):
        largest.clear()
        translate_tiled(net, torch.zeros(1, 3, side, side), 32)
        peaks.append(sorted(set(largest)))
    assert peaks[0] == peaks[1]
    # 8 maps at full size of the probe, 128 x 128; a tile with its surroundings of 3 cells has 56 x 56
    assert peaks[1][-1] == 8 * 128**2


def test_stages_see_as_far_as_their_convolutions():
    stages = plan(ResnetGenerator(ngf=4, n_blocks=9), 3)
    # 3 cells: 3 + 1 + 1 pixels, then 2 + 2 at half size, make 9 pixels; a block has two 3 x 3 convolutions
    assert [(s.scale_in, s.scale_out, s.halo) for s in stages] == [(4, 1, 3), *[(1, 1, 2)] * 9, (1, 4, 3)]
    assert [len(s.norms) for s in stages] == [3, *[2] * 9, 2]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, kernels.InstanceNorm2d])
@torch.no_grad()
def test_norms_with_parameters_and_trained_statistics(kind, training):
    norms = kind(4, affine=True), kind(4, affine=True, track_running_stats=True)
    net = chain(norms[0], nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), norms[1]).train(training)
    for i, norm in enumerate(norms):
        norm.weight.copy_(golden.wave((4,), i))
        norm.bias.copy_(golden.wave((4,), 2 + i))
    norms[1].running_mean.fill_(0.3)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = golden.wave((1, 3, 40, 24))
    tiled = translate_tiled(net, x, 16)
    after = net.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert norms[0].running_mean is None and norms[0].training == training
    torch.testing.assert_close(tiled, net(x), atol=1e-12, rtol=0)


@torch.no_grad()
def test_batch_norm_with_trained_statistics():
    norm = nn.BatchNorm2d(4)
    net = chain(norm, nn.Dropout2d(0.5)).eval()
    norm.running_mean.fill_(0.3)
    x = golden.wave((1, 3, 40, 24))
    torch.testing.assert_close(translate_tiled(net, x, 16), net(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (UnetGenerator(ngf=2, num_downs=5), "not one chain of layers"),
        (chain(nn.BatchNorm2d(4)), "depends on all of the image.*--eval"),
        (chain(kernels.MunitLayerNorm(4)), "depends on all of the image"),
        (chain(nn.Dropout(0.5)), "dropout.*--eval"),
    ],
)
def test_what_cannot_be_cut_is_refused(net, message):
    with pytest.raises(UsageError, match=message):
        translate_tiled(net, torch.zeros(1, 3, 64, 64, dtype=next(net.parameters()).dtype), 32)


def test_a_network_that_does_more_than_its_layers_is_refused():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = chain().float()

        def forward(self, x):
            return x + self.model(x)

    with pytest.raises(UsageError, match="more than its chain"):
        translate_tiled(Residual(), torch.zeros(1, 3, 64, 64), 32)


@pytest.mark.parametrize(("size", "tile", "message"), [((64, 64), 0, "tile must be"), ((64, 62), 32, "multiples of 4")])
def test_wrong_sizes(size, tile, message):
    with pytest.raises(UsageError, match=message):
        translate_tiled(generator(), torch.zeros(1, 3, *size, dtype=torch.float64), tile)


def test_moments_of_pieces_are_those_of_the_whole():
    x = golden.wave((1, 3, 20, 30)) + 1e4
    moments = Moments()
    for rows in x.split(7, dim=2):
        for piece in rows.split(11, dim=3):
            moments.add(piece)
    torch.testing.assert_close(moments.mean, x.mean((0, 2, 3)), atol=0, rtol=1e-14)
    torch.testing.assert_close(moments.squares / moments.count, x.var((0, 2, 3), correction=0), atol=0, rtol=1e-8)
