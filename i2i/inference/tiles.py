"""Images too large for the device's memory: in tiles that share the statistics of the whole image.

Instance norms make a plain cut into tiles show: every tile is normalised by its own statistics, so tiles differ in
colour. Here every norm gets the statistics of the whole image, layer after layer, and the result is the untiled one up
to rounding. Measured with a CUT generator trained for 400 steps, on a photograph of 1024 x 1024, as the largest
difference from the untiled result in levels of 255:

* tiles of 256 or 512 pixels with statistics of their own: 85, 61
* statistics of the whole image reduced to a half or a quarter: 12, 25
* all norms at once, repeated until the statistics settle: they do not; each norm enlarges the errors before it
* here: 0.0001
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import kernels
from i2i.errors import UsageError
from kernels._dtypes import wide

PROBE = 32  # cells: side of the maps that find out how far a stage looks


class Box(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int

    def cut(self, x: Tensor, scale: int) -> Tensor:
        """This part of x (N, C, H, W), which has `scale` pixels per unit of the box."""
        return x[..., self.top * scale : self.bottom * scale, self.left * scale : self.right * scale]

    def inside(self, outer: Box) -> Box:
        """This box in coordinates that start at the corner of `outer`."""
        return Box(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)


@dataclass
class Stage:
    """Layers between two maps that are held whole. A cell is a pixel of the coarsest map."""

    layers: nn.Sequential
    norms: list[nn.InstanceNorm2d]  # those that normalise by the image's own statistics, in order of execution
    scale_in: int  # pixels per cell and side of the map that comes in
    scale_out: int
    halo: int = 0  # cells around a tile that its result depends on


class Moments:
    """Mean and variance of planes that come in pieces, merged by Chan's formula in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """x: (1, C, h, w)."""
        var, mean = torch.var_mean(wide(x[0]), (1, 2), correction=0)
        var, mean, n = var.double().cpu(), mean.double().cpu(), x.shape[2] * x.shape[3]
        delta, total = mean - self.mean, self.count + n
        self.squares = self.squares + var * n + delta.square() * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.count = total


@torch.no_grad()
def translate_tiled(network: nn.Module, image: Tensor, tile: int) -> Tensor:
    """`network(image)` in tiles of `tile` x `tile` pixels, up to rounding.

    The device holds one tile with its maps. The host holds the image, and two maps at the coarsest resolution: of a
    ResNet generator of width 64, 128 bytes per pixel of the image. What lies between, at higher resolution, is computed
    anew for every norm: twice the time of the untiled network. (1024 x 1024, tiles of 256, one CPU thread: 105 s
    instead of 53 s, 0.44 GB instead of 1.06 GB.)

    Args:
        network: one chain of layers (a module whose only child is a Sequential) on any device. Instance norms may
            stand anywhere in it, with or without parameters.
        image: (1, C, H, W) in [-1, 1], on the host; H and W multiples of what the network reduces by.
        tile: pixels, at least 1; rounded up to whole pixels of the coarsest map.

    Returns:
        (1, output channels, H, W) on the host.

    Raises:
        UsageError: the network's result at a place depends on the whole image by more than instance norms (a U-Net,
            batch norm or dropout in training mode), or it is no chain.
    """
    if tile < 1:
        raise UsageError(f"tile must be at least 1 pixel, got {tile}")
    x = image
    stages = plan(network, image.shape[1])
    cell = stages[0].scale_in
    height, width = (side // cell for side in image.shape[-2:])
    if (height * cell, width * cell) != image.shape[-2:]:
        raise UsageError(
            f"sides must be multiples of {cell} pixels to be cut into tiles, got {tuple(image.shape[-2:])}"
        )
    device = _weight(network).device
    for stage in stages:
        x = _run(stage, x, list(_boxes(height, width, -(-tile // cell), stage.halo)), device)
    return x


def plan(network: nn.Module, channels: int) -> list[Stage]:
    """Cut the chain after every layer whose map is at the coarsest resolution: such maps are small enough to hold."""
    if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.training for module in network.modules()):
        raise UsageError("a network with dropout cannot be run in tiles while dropout is on; switch it off with --eval")
    children = [network] if isinstance(network, nn.Sequential) else list(network.children())
    if len(children) != 1 or not isinstance(children[0], nn.Sequential):
        raise UsageError(
            f"{type(network).__name__} cannot be run in tiles: it is not one chain of layers (a U-Net's skips, say)"
        )
    chain = children[0]
    norms = [norm for norm in chain.modules() if isinstance(norm, nn.InstanceNorm2d)]
    norms = [norm for norm in norms if norm.training or norm.running_mean is None]
    with ExitStack() as stack:  # while the layers are looked at, norms do what they do to every pixel, and no more
        for norm in norms:
            zeros = torch.zeros(norm.num_features, device=_weight(network).device, dtype=wide(_weight(network)).dtype)
            stack.enter_context(_normalise_by(norm, zeros, zeros + 1))
        return _cut(network, chain, norms, channels)


def _cut(network: nn.Module, chain: nn.Sequential, norms: list[nn.InstanceNorm2d], channels: int) -> list[Stage]:
    shape = (1, channels, 4 * PROBE, 4 * PROBE)
    image = torch.linspace(-1, 1, math.prod(shape)).view(shape).to(_weight(network))
    maps = [image]
    for layer in chain:
        maps.append(layer(maps[-1]))
    if not torch.allclose(maps[-1], network(image), atol=1e-3):
        raise UsageError(f"{type(network).__name__} cannot be run in tiles: it does more than its chain of layers")
    cells = min(y.shape[-1] for y in maps)
    inner = range(1, len(chain))
    ends = [i for i in inner if maps[i].shape[-1] == cells and not isinstance(chain[i], nn.Identity)]
    stages = []
    for first, end in zip([0, *ends], [*ends, len(chain)], strict=True):
        sides = [maps[i].shape[-1] for i in (first, end)]
        if any(side % cells for side in sides):
            raise UsageError(f"{type(network).__name__} cannot be run in tiles: sides of {sides} for {cells} cells")
        layers: Any = chain[first:end]
        # Modules are registered in the order they run, in a chain and in the published blocks.
        stage = Stage(layers, [m for m in layers.modules() if m in norms], *(side // cells for side in sides))
        stage.halo = _halo(stage, maps[first])
        stages.append(stage)
    return stages


def _halo(stage: Stage, like: Tensor) -> int:
    """How many cells away a stage still sees a cell, measured with a NaN: no arithmetic can hide it.

    Without cuDNN, whose convolutions by transforms would spread it over their blocks.
    """
    middle = PROBE // 2
    x = like.new_zeros(1, like.shape[1], *(PROBE * stage.scale_in,) * 2)
    Box(middle, middle, middle + 1, middle + 1).cut(x, stage.scale_in).fill_(torch.nan)
    with torch.backends.cudnn.flags(enabled=False):
        seen = stage.layers(x).isnan().any(1)[0]
    places = (seen.any(1) | seen.any(0)).nonzero()
    first, last = int(places.min()) // stage.scale_out, int(places.max()) // stage.scale_out
    if first == 0 or last == PROBE - 1:
        raise UsageError(
            "this network cannot be run in tiles: its result at a place depends on all of the image (if it has batch "
            "norm, switch to the trained statistics with --eval)"
        )
    return max(middle - first, last - middle)


def _weight(network: nn.Module) -> Tensor:
    return next(network.parameters())


def _boxes(height: int, width: int, tile: int, halo: int) -> Iterator[tuple[Box, Box]]:
    """(tile, tile with its surroundings) over a map of height x width cells."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            inner = Box(top, left, min(top + tile, height), min(left + tile, width))
            # ends at the image's border, so that the network's own padding is met there and nowhere else in the tile
            yield (
                inner,
                Box(
                    max(inner.top - halo, 0),
                    max(inner.left - halo, 0),
                    min(inner.bottom + halo, height),
                    min(inner.right + halo, width),
                ),
            )


def _run(stage: Stage, source: Tensor, boxes: list[tuple[Box, Box]], device: torch.device) -> Tensor:
    """The stage on the whole map `source`: once for each norm's statistics, once for the result."""

    form = kernels.preferred_memory_format(device, training=False)

    def crop(outer: Box) -> Tensor:
        return outer.cut(source, stage.scale_in).to(device).contiguous(memory_format=form)

    with ExitStack() as stack:
        for norm in stage.norms:
            moments = Moments()
            for inner, outer in boxes:
                x = _input_of(norm, stage.layers, crop(outer))
                moments.add(inner.inside(outer).cut(x, x.shape[-1] // (outer.right - outer.left)))
            mean, var = (t.to(device, wide(x).dtype) for t in (moments.mean, moments.squares / moments.count))
            stack.enter_context(_normalise_by(norm, mean, var))
        result = None
        for inner, outer in boxes:
            y = inner.inside(outer).cut(stage.layers(crop(outer)), stage.scale_out)
            if result is None:
                sides = (side // stage.scale_in * stage.scale_out for side in source.shape[-2:])
                result = torch.empty(1, y.shape[1], *sides, dtype=y.dtype)
            inner.cut(result, stage.scale_out).copy_(y)
    assert result is not None  # there are boxes
    return result


class _Reached(Exception):
    pass


def _input_of(norm: nn.Module, layers: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `norm` is given when `layers` run on x; nothing is computed past it."""
    found: list[Tensor] = []

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _Reached

    hook = norm.register_forward_pre_hook(stop)
    try:
        layers(x)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


@contextmanager
def _normalise_by(norm: nn.InstanceNorm2d, mean: Tensor, var: Tensor) -> Iterator[None]:
    """Inside, `norm` uses these statistics (C,), as torch's instance norm does with trained ones in eval mode."""
    names = ("running_mean", "running_var", "track_running_stats", "training")
    before = {name: getattr(norm, name) for name in names}
    norm.running_mean, norm.running_var, norm.track_running_stats, norm.training = mean, var, True, False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(norm, name, value)
