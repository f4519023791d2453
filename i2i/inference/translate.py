"""Images through a trained network, at any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from i2i.data.images import one_line
from i2i.errors import UsageError
from i2i.inference.tiles import translate_tiled

LARGEST = 1024  # multiple that is tried: of unet_1024
ENOUGH = 64  # pixels, of which every network here takes its multiples


@torch.no_grad()
def translate(
    network: nn.Module,
    images: Tensor,
    *,
    tile: int | None = None,
    precision: str = "float32",
    multiple: int | None = None,
    least: int | None = None,
) -> Tensor:
    """`images` through `network`, whatever their size: sides that it cannot take are extended at the bottom and at the
    right by reflection (by repetition of the border where the image is too small for that), and cut off again.

    The network runs in the mode that it is in; see `prepare`.

    Args:
        network: (N, C, H, W) -> (N, C', H, W).
        images: (N, C, H, W) in [-1, 1], on any device, H and W at least 1.
        tile: side in pixels of the tiles to go through in, for images too large for memory (see `translate_tiled`).
        precision: "float32", "bfloat16" or "float16", of convolutions and maps.
        multiple: of what the sides must be; `size_multiple(network)` if not given.
        least: what the sides must be at least; `least_side(network, multiple)` if not given.

    Returns:
        (N, C', H, W) float32 on the device of `images`.

    Raises:
        UsageError: the network takes no such images, or cannot be run in tiles.
    """
    if multiple is None:
        multiple = size_multiple(network)
    if least is None:
        least = least_side(network, multiple)
    weight = next(network.parameters())
    height, width = images.shape[-2:]
    x = _extend(images, *(-(-max(side, least) // multiple) * multiple for side in (height, width)))
    with torch.autocast(weight.device.type, getattr(torch, precision), enabled=precision != "float32"):
        if tile is None:
            form = kernels.preferred_memory_format(weight.device, getattr(torch, precision), training=False)
            y = network(x.to(weight.device, weight.dtype).contiguous(memory_format=form))
        else:
            y = torch.cat([translate_tiled(network, image[None], tile) for image in x.to("cpu", weight.dtype)])
    return y[..., :height, :width].float().to(images.device)


def prepare(network: nn.Module, evaluate: bool) -> bool:
    """Put `network` into the mode to translate in. True if the images of a batch then influence each other's result.

    As published, that is training mode: batch norm with the statistics of the image itself, dropout on (pix2pix was
    published with both). `evaluate` switches to trained statistics and no dropout. Networks with instance norm and
    without dropout are the same in both.
    """
    network.train(not evaluate)
    # Dropout: not the images, but the random numbers that each gets, would depend on the others.
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return not evaluate and any(isinstance(module, mixing) for module in network.modules())


def channels_in(network: nn.Module) -> int:
    """Channels of the images that `network` takes: those of its first convolution, if it does not say otherwise."""
    first = next((p.shape[1] for p in network.parameters() if p.dim() == 4), None)
    channels = getattr(network, "input_nc", first)
    if channels is None:
        raise UsageError(f"{type(network).__name__} takes no images: it has no convolution")
    return channels


def refuse_judge(network: nn.Module) -> None:
    """UsageError for a discriminator: the scores of one that judges pixels have the size of an image, and are none."""
    if type(network).__name__.endswith("Discriminator"):
        raise UsageError(f"{network.found_in}: is a {network.recognised}, which judges images and translates none")


@torch.no_grad()
def size_multiple(network: nn.Module) -> int:
    """The smallest power of 2 that sides must be multiples of, found by trying: 4 for a ResNet, 256 for unet_256."""
    weight, channels = next(network.parameters()), channels_in(network)
    power = 1
    while power <= LARGEST:
        # an odd multiple, so that no higher power divides it, of enough pixels for what looks far
        side = power * (ENOUGH // (2 * power) * 2 + 1)
        reason = _refusal(network, weight.new_zeros(1, channels, side, side))
        if not reason:
            return power
        power *= 2
    raise UsageError(f"{type(network).__name__} does not translate images of one size into the same size: {reason}")


@torch.no_grad()
def least_side(network: nn.Module, multiple: int) -> int:
    """The smallest multiple of `multiple`, 8 or more, that sides can be, found by trying in the mode that the network
    is in: 8 for a ResNet, whose reflection padding needs 2 pixels of its coarsest map; 32 for DiscoGAN's generator as
    published, whose batch norm does, and 64 for the one with extra layers."""
    weight, channels = next(network.parameters()), channels_in(network)
    first = -(-8 // multiple) * multiple
    for side in range(first, max(first, 2 * ENOUGH) + 1, multiple):
        if not _refusal(network, weight.new_zeros(1, channels, side, side)):
            return side
    return first


def _refusal(network: nn.Module, images: Tensor) -> str:
    """Why `network` does not translate `images`; "" if it does."""
    try:
        y = network(images)
    except kernels.BackendUnavailable:  # no fault of the network's
        raise
    except (RuntimeError, ValueError, TypeError) as error:  # TypeError: it wants more than an image
        return one_line(error)
    if not isinstance(y, Tensor):
        return "it gives no image"
    return "" if y.shape[-2:] == images.shape[-2:] else "it changes their size"


def _extend(x: Tensor, height: int, width: int) -> Tensor:
    below, right = height - x.shape[-2], width - x.shape[-1]
    if not below and not right:
        return x
    possible = below < x.shape[-2] and right < x.shape[-1]
    return F.pad(x, (0, right, 0, below), mode="reflect" if possible else "replicate")
