"""Translation of images of any size."""

import numpy as np
import pytest
import torch
from support import golden
from support.translators import small
from torch import nn

from i2i.errors import UsageError
from i2i.inference.translate import least_side, prepare, size_multiple, translate
from i2i.networks import ResnetGenerator, UnetGenerator
from i2i.networks.discogan import DiscoGANDiscriminator, DiscoGANGenerator


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        (small(), 4),
        (small(antialias_down=False, antialias_up=False), 4),
        (UnetGenerator(ngf=2, num_downs=5), 32),
        (UnetGenerator(ngf=2, num_downs=7, norm="batch"), 128),
        (nn.Conv2d(3, 3, 3, padding=1), 1),
    ],
)
def test_size_multiple(net, wanted):
    assert size_multiple(net) == wanted


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Conv2d(3, 3, 3), "Conv2d does not translate.*it changes their size"),
        (nn.Bilinear(3, 3, 3), "Bilinear takes no images"),
        (nn.ConvTranspose2d(3, 3, 1, stride=2), "changes their size"),
        (DiscoGANDiscriminator(conv_dim=2), "DiscoGANDiscriminator does not translate.*it gives no image"),
    ],
)
def test_a_network_that_does_not_translate_is_refused(net, message):
    with pytest.raises(UsageError, match=message):
        size_multiple(net)


@pytest.mark.parametrize("size", [(64, 64), (61, 50), (3, 40), (2, 9)])
@torch.no_grad()
def test_any_size_is_extended_by_reflection_and_cut_back(size):
    net = small().double()
    x = golden.wave((2, 3, *size))
    got = translate(net, x)
    assert got.shape == x.shape and got.dtype == torch.float32
    # by hand, in NumPy: edge where there are too few pixels to reflect
    sides = [max(8, -(-side // 4) * 4) - side for side in size]
    mode = "reflect" if all(extra < side for extra, side in zip(sides, size)) else "edge"
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *((0, extra) for extra in sides)], mode=mode)
    wanted = net(torch.from_numpy(padded))[..., : size[0], : size[1]]
    torch.testing.assert_close(got, wanted.float(), atol=1e-6, rtol=0)


@torch.no_grad()
def test_in_tiles_image_by_image():
    net = small()
    x = golden.image("x", (2, 3, 45, 50))
    torch.testing.assert_close(translate(net, x, tile=16), translate(net, x), atol=2e-5, rtol=0)


def test_published_mode_and_evaluation_mode():
    batch, drop, plain = UnetGenerator(ngf=2, num_downs=5, norm="batch"), small(dropout=True), small()
    assert [prepare(net, False) for net in (batch, drop, plain)] == [True, True, False]
    assert batch.training and drop.training
    assert [prepare(net, True) for net in (batch, drop, plain)] == [False, False, False]
    assert not batch.training and not drop.training


SIZES = {  # (multiple, least side) as published, in training mode, and with --eval
    "U-Net with batch norm": (lambda: UnetGenerator(ngf=2, num_downs=5, norm="batch"), (32, 32), (32, 32)),
    "U-Net of 1024 pixels": (lambda: UnetGenerator(ngf=1, num_downs=10), (1024, 1024), (1024, 1024)),
    "ResNet with batch norm": (lambda: ResnetGenerator(ngf=4, n_blocks=1, norm="batch"), (4, 8), (4, 8)),
    "DiscoGAN": (lambda: DiscoGANGenerator(conv_dim=4), (16, 32), (16, 16)),
    "DiscoGAN, extra layers": (lambda: DiscoGANGenerator(conv_dim=4, extra_layers=True), (16, 80), (16, 64)),
}


@pytest.mark.parametrize("kind", SIZES)
def test_pictures_of_a_few_pixels(kind):
    """Batch norm of one number, reflection of one pixel, a kernel larger than its map: no error of torch's."""
    build, *wanted = SIZES[kind]
    network = build()
    for evaluate, sizes in zip((False, True), wanted):
        prepare(network, evaluate)
        multiple = size_multiple(network)
        assert (multiple, least_side(network, multiple)) == sizes
        for size in ((12, 12), (1, 1), (3, 70)):
            result = translate(network, torch.zeros(1, 3, *size), multiple=multiple)
            assert result.shape[-2:] == size and result.isfinite().all()


@pytest.mark.parametrize("tile", [None, 32])
@torch.no_grad()
def test_images_have_the_memory_format_of_the_machine(form, tile):
    net = small()
    seen = []
    hook = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook
    hook(lambda module, inputs: seen.append(inputs[0]))
    x = golden.image("x", (2, 3, 48, 48))
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        seen.clear()
        translate(net, given, tile=tile, multiple=4, least=8)
        assert seen[-1].is_contiguous(memory_format=form)
