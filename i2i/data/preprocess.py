"""From a picture of any size to what a network is shown: the published ways of scaling, cutting out and mirroring."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from torch import Tensor

from i2i.config import suggestion
from i2i.data.images import to_tensor
from i2i.data.pages import PAGES
from i2i.errors import UsageError

# Parts between "_and_" are steps, done in this order.
MODES = (
    "resize_and_crop",  # to load_size x load_size whatever the aspect, then a random square of crop_size
    "crop",  # a random square of crop_size
    "scale_width",  # to a width of load_size, at least crop_size high
    "scale_width_and_crop",
    "scale_shortside",  # to a shorter side of load_size. The published code only ever enlarges, against its README
    "scale_shortside_and_crop",
    "none",
    "zoom",  # each side times a random factor of its own, at least crop_size
    "patch",  # a random square of a grid of crop_size, the grid laid at random
    "trim",  # a random part of at most crop_size each way
    "fixsize",  # to crop_size x crop_size. The published code asks for a size here that none of its datasets gives
    "zoom_and_patch",
)
ZOOM = (0.8, 1.0)  # range of the factors
BATCH_ZOOM = (1 / 3, 1.0)  # the same for SinCUT, which has one pair of factors for a batch


@dataclass(frozen=True)
class ImageOptions:
    """How images are read and cut, under the names that the published options have. 0 images: no limit."""

    load_size: int = 286
    crop_size: int = 256
    preprocess: str = "resize_and_crop"
    flip: bool = True
    input_nc: int = 3
    output_nc: int = 3
    direction: str = "AtoB"
    serial_batches: bool = False
    max_dataset_size: int = 0
    seed: int = 0
    pages: str = "refuse"

    def __post_init__(self) -> None:
        if self.preprocess not in MODES:
            known = ", ".join(MODES)
            raise UsageError(
                f"preprocess must be one of {known}; got {self.preprocess}{suggestion(self.preprocess, MODES)}"
            )
        if self.direction not in ("AtoB", "BtoA"):
            raise UsageError(f"direction must be AtoB or BtoA, got {self.direction}")
        if self.pages not in PAGES:
            raise UsageError(
                f"pages must be one of {', '.join(PAGES)}; got {self.pages}{suggestion(self.pages, PAGES)}"
            )
        for name in ("input_nc", "output_nc"):
            if not 1 <= getattr(self, name) <= 4:
                raise UsageError(f"{name} must be 1 to 4 channels, got {getattr(self, name)}")
        for name, least in (("crop_size", 4), ("load_size", 4), ("max_dataset_size", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        scaled = self.preprocess.startswith(("resize", "scale"))
        if scaled and self.preprocess.endswith("_and_crop") and self.load_size < self.crop_size:
            raise UsageError(f"load_size must be at least crop_size ({self.crop_size}), got {self.load_size}")

    def full_view(self) -> ImageOptions:
        """Pictures reduced to the size of the crop before it is cut."""
        return replace(self, load_size=self.crop_size)

    def at_test(self) -> ImageOptions:
        """As published: nothing mirrored, nothing shuffled, pictures loaded at the size of the crop."""
        return replace(self.full_view(), flip=False, serial_batches=True)

    def for_preview(self) -> ImageOptions:
        """Squares of crop_size that show as much of a picture as its aspect allows."""
        whole = self.preprocess in ("resize_and_crop", "fixsize")
        return replace(self.at_test(), preprocess="resize_and_crop" if whole else "scale_shortside_and_crop")


def preprocess(image: np.ndarray, options: ImageOptions, rng: np.random.Generator) -> Tensor:
    """(H, W, C) in 0 .. 255, uint8 or float32 -> (C, h, w) float32 in [-1, 1], h and w multiples of 4.

    The published order, whatever the mode: scale or zoom, cut, round the sides to multiples of 4, mirror half of the
    time. Raises UsageError where the picture is smaller than what is to be cut from it.
    """
    require_size(image.shape[1], image.shape[0], options)
    return cut(scale(image, options, rng), options, rng)


def scale(
    image: np.ndarray,
    options: ImageOptions,
    rng: np.random.Generator,
    *,
    zoom: tuple[float, float] = ZOOM,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """The first half of `preprocess`."""
    factors = rng.uniform(*zoom, size=2) if "zoom" in options.preprocess else (1.0, 1.0)
    return resize(image, *scaled_size(image.shape[1], image.shape[0], options, *factors), resample)


def scaled_size(
    width: int, height: int, options: ImageOptions, across: float = 1.0, down: float = 1.0
) -> tuple[int, int]:
    """What `scale` makes of a size; across, down: the factors of `zoom`."""
    steps, crop, load = options.preprocess.split("_and_"), options.crop_size, options.load_size
    if "fixsize" in steps:
        return crop, crop
    if "resize" in steps:
        return load, load
    if "scale_width" in steps:
        return load, int(max(load * height / width, crop))
    if "scale_shortside" in steps:
        factor = load / min(height, width)
        return round(width * factor), round(height * factor)
    if "zoom" in steps:
        return round(max(crop, width * across)), round(max(crop, height * down))
    return width, height


def cut(
    image: np.ndarray,
    options: ImageOptions,
    rng: np.random.Generator,
    *,
    cell: int | None = None,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Tensor:
    """The second half of `preprocess`. `cell`: number of the square that `patch` takes, None for a random one."""
    steps, crop = options.preprocess.split("_and_"), options.crop_size
    if "crop" in steps or "trim" in steps:
        image = random_window(image, crop, rng)
    elif "patch" in steps:
        image = grid_cell(image, crop, int(rng.integers(cells(image, crop))) if cell is None else cell, rng)
    width, height = rounded(image.shape[1], image.shape[0])
    image = resize(image, width, height, resample)
    if options.flip and rng.random() < 0.5:
        image = image[:, ::-1]
    return to_tensor(image)


def rounded(width: int, height: int) -> tuple[int, int]:
    """To multiples of 4, as published."""
    return max(4, round(width / 4) * 4), max(4, round(height / 4) * 4)


def final_sizes(width: int, height: int, options: ImageOptions) -> set[tuple[int, int]]:
    """(width, height) of what `preprocess` gives for a picture of this size: one, or the smallest and the largest."""
    steps, crop = options.preprocess.split("_and_"), options.crop_size
    if "crop" in steps or "patch" in steps:
        return {rounded(min(crop, side), min(crop, other)) for side, other in [scaled_size(width, height, options)]}
    if "trim" in steps:
        return {rounded(min(crop, width), min(crop, height))}
    factors = ZOOM if "zoom" in steps else (1.0,)
    return {rounded(*scaled_size(width, height, options, factor, factor)) for factor in factors}


def require_size(width: int, height: int, options: ImageOptions) -> None:
    if options.preprocess in ("crop", "patch") and min(width, height) < options.crop_size:
        raise UsageError(
            f"{width} x {height} pixels, smaller than the crop of {options.crop_size}: lower crop_size or let "
            "preprocess scale, for example scale_shortside_and_crop"
        )


def resize(
    image: np.ndarray, width: int, height: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """(H, W, C) -> (height, width, C), by Pillow. uint8 stays uint8, rounded as the published code has it; float32
    stays float32, in 0 .. 255. Every channel on its own: Pillow would weigh colours by what it takes for alpha."""
    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint8 and image.shape[2] == 3:  # the same levels as one by one, in a quarter less time
        return np.asarray(Image.fromarray(image).resize((width, height), resample))
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, -1, 0))
    image = np.stack([np.asarray(plane.resize((width, height), resample)) for plane in planes], axis=-1)
    return image if image.dtype == np.uint8 else image.clip(0, 255)


def random_window(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A part of `size` each way, or of all there is where that is less."""
    left, top = (int(rng.integers(max(0, side - size) + 1)) for side in image.shape[1::-1])
    return image[top : top + size, left : left + size]


def cells(image: np.ndarray, size: int) -> int:
    """Squares of `size` that fit into a grid."""
    return (image.shape[0] // size) * (image.shape[1] // size)


def grid_cell(image: np.ndarray, size: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """Square number `cell`, counted down the columns, of a grid laid so that all its squares are inside."""
    height, width = image.shape[:2]
    left, top = (int(rng.integers(side % size + 1)) for side in (width, height))
    column, row = divmod(cell, height // size)
    return image[top + row * size :, left + column * size :][:size, :size]
