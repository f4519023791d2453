"""Data sets: which pictures a run is shown, when, and which part of them.

Every data set gives its images by the run's image number, counted from 0, and is a pure function of it and the seed.
That alone makes runs repeatable and resumable, whatever reads the images and in whatever order.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2i.data.folders import Folder, pair
from i2i.data.images import UNREADABLE, Picture, one_line, read_image, require_channels
from i2i.data.listing import tell
from i2i.data.preprocess import BATCH_ZOOM, ImageOptions, cells, cut, preprocess, require_size, scale
from i2i.errors import UsageError

CROPS_PER_PASS = 100_000  # of a single image, as published
BILINEAR = Image.Resampling.BILINEAR  # as published for single images; the others are bicubic


class Dataset(Protocol):
    """What training needs of a data set. Images are (C, H, W) float32 in [-1, 1]."""

    def __len__(self) -> int:
        """Images of one pass."""
        ...

    def item(self, number: int) -> tuple[Tensor, ...]:
        """What the run's image `number` shows, one tensor per domain."""
        ...

    def preview(self, count: int) -> tuple[Tensor, ...]:
        """At most `count` images to look at, as a batch in the order of `item`; the same at every call."""
        ...

    def describe(self) -> str:
        """One line for people."""
        ...


class Layout:
    """Order, crops and damaged files, the same for every data set made of files.

    `full_view_from`: from this image number on, pictures are reduced to the size of the crop before it is cut, as CUT
    does while its learning rate falls. `test`: a data set of the same kind to take the preview from, None: this one.
    """

    def __init__(self, options: ImageOptions):
        self.options = options
        self.full_view_from: int | None = None
        self.test: Layout | None = None
        self.skipped: set[Path] = set()  # opened at the start but could not be decoded when their turn came

    def __len__(self) -> int:
        raise NotImplementedError

    def item(self, number: int) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError

    def preview(self, count: int) -> tuple[Tensor, ...]:
        if self.test is not None:
            try:
                return self.test.sheet(count)
            except (UsageError, OSError) as error:  # pictures to look at are not worth a run
                tell(f"\npictures of the run are of training images from now on: {error}")
                self.test = None
        return self.sheet(count)

    def sheet(self, count: int) -> tuple[Tensor, ...]:
        shown = copy.copy(self)
        shown.options, shown.full_view_from = shown.options.for_preview(), None
        return stack([shown.item(number) for number in range(min(count, len(shown)))])

    def sides(self) -> list[list[Picture]]:
        """The pictures of each domain, for `sizes.check_sizes`; none where all are cut to one size."""
        return []

    def limited(self, entries: Sequence[Any]) -> Sequence[Any]:
        return entries[: self.options.max_dataset_size or None]

    def require(self, pictures: Sequence[Picture], channels: int) -> None:
        """UsageError that names the picture which cannot be shown as the options ask."""
        for picture in pictures:
            require_channels(picture, channels)
            try:
                require_size(picture.width, picture.height, self.options)
            except UsageError as error:
                raise UsageError(f"{picture.path}: {error}") from None

    def draw(self, number: int) -> tuple[int, np.random.Generator]:
        """(place in the files, random numbers) for an image of the run: every pass in a new order, unless serial."""
        epoch, place = divmod(number, len(self))
        rng = np.random.default_rng([self.options.seed, epoch, place])
        if self.options.serial_batches:
            return place, rng
        return int(np.random.default_rng([self.options.seed, epoch]).permutation(len(self))[place]), rng

    def read(self, entries: Sequence[tuple[Picture, ...]], index: int, *channels: int) -> list[np.ndarray]:
        """The pictures of the entry at `index`, or of the next one whose files can all be decoded."""
        for offset in range(len(entries)):
            images: dict[tuple[Picture, int], np.ndarray] = {}  # the two halves of one file are decoded once
            wanted = list(zip(entries[(index + offset) % len(entries)], channels, strict=True))
            try:
                for picture, count in wanted:
                    if (picture, count) not in images:
                        path = picture.path
                        images[picture, count] = read_image(path, count, picture.page)
                return [images[key] for key in wanted]
            except UsageError:
                raise
            except UNREADABLE as error:
                if path not in self.skipped:
                    self.skipped.add(path)
                    print(f"\nskipped, unreadable: {path} ({one_line(error)})", file=sys.stderr)
        raise UsageError(f"{entries[0][0].path.parent}: none of its {len(entries)} images can be read")

    def shown(self, image: np.ndarray, number: int, rng: np.random.Generator) -> Tensor:
        full_view = self.full_view_from is not None and number >= self.full_view_from
        return preprocess(image, self.options.full_view() if full_view else self.options, rng)


class Unaligned(Layout):
    """(A, B) that have nothing to do with each other. A pass shows every image of the larger folder once; A goes
    through its images in turn and B is drawn at random, or goes in turn too with serial_batches."""

    def __init__(self, folders: Sequence[Folder], options: ImageOptions):
        super().__init__(options)
        self.folders = folders
        self.a, self.b = ([(picture,) for picture in self.limited(folder.pictures)] for folder in folders)
        self.require([picture for (picture,) in self.a], options.input_nc)
        self.require([picture for (picture,) in self.b], options.output_nc)

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def describe(self) -> str:
        return f"A = {self.folders[0].describe()}; B = {self.folders[1].describe()}"

    def sides(self) -> list[list[Picture]]:
        return [[picture for (picture,) in side] for side in (self.a, self.b)]

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        """(A of input_nc channels, B of output_nc)."""
        index, rng = self.draw(number)
        index_b = index % len(self.b) if self.options.serial_batches else int(rng.integers(len(self.b)))
        (a,) = self.read(self.a, index % len(self.a), self.options.input_nc)
        (b,) = self.read(self.b, index_b, self.options.output_nc)
        return self.shown(a, number, rng), self.shown(b, number, rng)


class Aligned(Layout):
    """(A, B) of one scene, with one crop and one mirroring: from one folder of pictures that show A on the left and B
    on the right, or from two whose files pair (see `folders.pair`)."""

    def __init__(self, folders: Sequence[Folder], options: ImageOptions):
        super().__init__(options)
        self.folders = folders
        self.halves = len(folders) == 1
        found = [(picture, picture) for picture in folders[0].pictures] if self.halves else pair(*folders)
        self.entries = self.limited(found)
        for a, b in self.entries:
            if self.halves and a.width % 2:
                raise UsageError(f"{a.path}: {a.width} pixels wide, so A and B side by side have no middle")
            if a[1:3] != b[1:3]:
                raise UsageError(
                    f"{a.path} is {a.width} x {a.height} and its partner {b.path} {b.width} x {b.height} pixels: "
                    "pairs must be of one size"
                )
        a, b = self.sides()
        self.require(a, options.input_nc)
        self.require(b, options.output_nc)

    def sides(self) -> list[list[Picture]]:
        return [[self.half(entry[side]) for entry in self.entries] for side in range(2)]

    def half(self, picture: Picture) -> Picture:
        return picture._replace(width=picture.width // 2) if self.halves else picture

    def __len__(self) -> int:
        return len(self.entries)

    def describe(self) -> str:
        names = " and ".join(str(folder.place) for folder in self.folders)
        side = ", side by side" if self.halves else ""
        return f"A and B = {names} ({len(self)} pair{'s' if len(self) > 1 else ''}{side})"

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        """(A of input_nc channels, B of output_nc); the other way round with direction BtoA."""
        index, rng = self.draw(number)
        sides = self.read(self.entries, index, self.options.input_nc, self.options.output_nc)
        if sides[0].shape[:2] != sides[1].shape[:2]:  # one crop would be of two places
            a, b = (picture.path for picture in self.entries[index])
            raise UsageError(
                f"{a} and {b} are no longer of one size: one has changed since the run began, or says behind its "
                "pixels only how it is to be turned"
            )
        if self.halves:
            middle = sides[0].shape[1] // 2
            left, right = slice(0, middle), slice(middle, None)
            places = (right, left) if self.options.direction == "BtoA" else (left, right)
            sides = [side[:, place] for side, place in zip(sides, places)]
        a, b = (self.shown(side, number, copy.deepcopy(rng)) for side in sides)
        return a, b


class SingleFolder(Layout):
    """(A,): the images of one folder, to translate them."""

    def __init__(self, folder: Folder, options: ImageOptions):
        super().__init__(options)
        self.folder = folder
        self.pictures = self.limited(folder.pictures)
        self.require(self.pictures, options.input_nc)

    def __len__(self) -> int:
        return len(self.pictures)

    def describe(self) -> str:
        return self.folder.describe()

    def item(self, number: int) -> tuple[Tensor]:
        """UsageError where the file cannot be decoded: another's translation must not bear its name."""
        index, rng = self.draw(number)
        return (self.shown(read_or_refuse(self.pictures[index], self.options.input_nc), number, rng),)


class SingleImage(Layout):
    """(A, B) cut from one picture each, for SinCUT. The zoom of A is one for all of a batch, and so is that of B;
    patches of a batch are of different places. (In the published code the shuffled loader undoes both.)"""

    def __init__(
        self, folders: Sequence[Folder], options: ImageOptions, batch_size: int = 1, crops: int = CROPS_PER_PASS
    ):
        super().__init__(options)
        self.folders, self.batch_size, self.crops = folders, batch_size, crops
        self.images = []
        for folder, channels in zip(folders, (options.input_nc, options.output_nc), strict=True):
            if len(folder.pictures) != 1:
                raise UsageError(f"{folder.place}: exactly one image wanted, found {len(folder.pictures)}")
            self.require(folder.pictures, channels)
            self.images.append(read_or_refuse(folder.pictures[0], channels))
        # Of 1024 x 768 pixels, a batch of 16 takes 17 ms with this and 210 ms without. Threads are at several batches.
        self.zoomed = lru_cache(maxsize=32)(self._zoom)

    def __len__(self) -> int:
        return self.crops

    def describe(self) -> str:
        a, b = (folder.pictures[0].path for folder in self.folders)
        return f"A = {a}; B = {b}; {self.crops} crops a pass"

    def sides(self) -> list[list[Picture]]:
        return [] if "zoom" in self.options.preprocess else [folder.pictures for folder in self.folders]

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        batch, place = divmod(number, self.batch_size)
        sides = []
        for side in range(2):
            image, order = self.zoomed(side, batch)
            rng = np.random.default_rng([self.options.seed, side, number, 0])
            sides.append(cut(image, self.options, rng, cell=int(order[place % len(order)]), resample=BILINEAR))
        return sides[0], sides[1]

    def _zoom(self, side: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(picture as a batch sees it, the order in which the squares of its grid are taken)."""
        rng = np.random.default_rng([self.options.seed, side, batch, 1])
        image = scale(self.images[side], self.options, rng, zoom=BATCH_ZOOM, resample=BILINEAR)
        return image, rng.permutation(max(1, cells(image, self.options.crop_size)))

    def preview(self, count: int) -> tuple[Tensor, ...]:
        """The first crops of the run: shown whole, the picture would not be what the networks see."""
        return stack([self.item(number) for number in range(count)])


def read_or_refuse(picture: Picture, channels: int) -> np.ndarray:
    try:
        return read_image(picture.path, channels, picture.page)
    except UsageError:
        raise
    except UNREADABLE as error:
        raise UsageError(f"{picture.path}: cannot be read ({one_line(error)})") from None


def stack(items: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Items -> a batch: a tensor (N, C, H, W) per domain. UsageError where sizes differ."""
    for images in zip(*items):
        sizes = {tuple(image.shape[-2:]) for image in images}
        if len(sizes) > 1:
            found = " and ".join(f"{height} x {width}" for height, width in sorted(sizes)[:2])
            raise UsageError(
                f"images of one batch must be of one size, got {found}: use batch_size 1, or a preprocess that crops"
            )
    return tuple(torch.stack(images) for images in zip(*items))
