"""Two folders of unpaired photographs, read and cropped as CUT does."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from i2i.errors import UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff")


class Pairs(Protocol):
    """What the training loop needs of a data set. `pair` is a pure function of the number: that alone makes runs
    repeatable and resumable, whatever reads the images and in whatever order."""

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        """Images (3, crop, crop) in [-1, 1] of A and of B for the run's image `number`, counted from 0."""


def read_rgb(path: Path) -> Image.Image:
    """Any picture Pillow can read as 8-bit RGB, upright; alpha is dropped, as the published code drops it.

    Raises OSError or ValueError when there is no picture to be had from the file.
    """
    with Image.open(path) as image:
        image.load()
        if image.mode == "F":
            raise ValueError("floating-point pixels have no known range")
        if image.mode.startswith("I"):
            # 16 bits per pixel. Pillow's own conversion to RGB clips at 255, which makes most such pictures white.
            pixels = np.asarray(image)
            if pixels.min() < 0 or pixels.max() > 65535:
                raise ValueError("more than 16 bits per pixel")
            image = Image.fromarray((pixels / 257).round().astype(np.uint8))
        return ImageOps.exif_transpose(image).convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def list_images(folder: Path) -> list[Path]:
    """Pictures under `folder`, sorted; a file that does not open as one is named on stderr and left out."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of images")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    readable, unreadable = [], []
    for path in files:
        try:
            Image.open(path).close()  # reads the header only: quick enough for a large folder
            readable.append(path)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            unreadable.append(path)
            print(f"skipped, unreadable: {path} ({one_line(error)})", file=sys.stderr)
    if unreadable:
        print(f"{folder}: {len(unreadable)} of {len(files)} images skipped", file=sys.stderr)
    if not readable:
        found = f"none of its {len(files)} images can be read" if files else "no images in it"
        raise UsageError(f"{folder}: {found} (looked for {' '.join(EXTENSIONS)}, subfolders too)")
    return readable


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def find_folders(data: tuple[str, ...]) -> tuple[Path, Path]:
    """(folder of A, folder of B) from one folder that holds trainA and trainB, or from two folders."""
    if len(data) == 2:
        return Path(data[0]), Path(data[1])
    root = Path(data[0])
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    for name in ("trainA", "trainB"):
        if not (root / name).is_dir():
            raise UsageError(
                f"{root} has no folder {name}: put images into {root}/trainA and {root}/trainB, or name two folders"
            )
    return root / "trainA", root / "trainB"


class UnpairedFolders:
    """A and B from two folders. A pass shows every image of the larger folder once, in a new order each time; A goes
    through its images in turn and B is drawn at random.

    `full_view_from`: from this image number on, images are reduced to the crop size instead of cropped, as CUT does
    while its learning rate falls.
    """

    def __init__(
        self,
        folder_a: Path,
        folder_b: Path,
        load_size: int,
        crop_size: int,
        flip: bool,
        seed: int,
        full_view_from: int | None = None,
    ):
        self.a, self.b = list_images(folder_a), list_images(folder_b)
        self.load_size, self.crop_size, self.flip, self.seed = load_size, crop_size, flip, seed
        self.full_view_from = full_view_from
        self.skipped: set[Path] = set()  # opened at the start but could not be decoded when their turn came
        self.folders = folder_a, folder_b

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    def describe(self) -> str:
        return f"A = {self.folders[0]} ({len(self.a)} images); B = {self.folders[1]} ({len(self.b)} images)"

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(number, len(self))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
        rng = np.random.default_rng([self.seed, epoch, place])
        a = self._read(self.a, int(order[place]) % len(self.a))
        b = self._read(self.b, int(rng.integers(len(self.b))))
        full_view = self.full_view_from is not None and number >= self.full_view_from
        return self._crop(a, rng, full_view), self._crop(b, rng, full_view)

    def _read(self, paths: list[Path], index: int) -> Image.Image:
        """The picture at `index`, or the next one that can be decoded."""
        for offset in range(len(paths)):
            path = paths[(index + offset) % len(paths)]
            try:
                return read_rgb(path)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG
                if path not in self.skipped:
                    self.skipped.add(path)
                    print(f"\nskipped, unreadable: {path} ({one_line(error)})", file=sys.stderr)
        raise UsageError(f"{paths[0].parent}: none of its {len(paths)} images can be read")

    def _crop(self, image: Image.Image, rng: np.random.Generator, full_view: bool) -> Tensor:
        """To a square whatever the aspect, then a random square of it, then mirrored half of the time."""
        side, crop = self.crop_size if full_view else self.load_size, self.crop_size
        left, top = (int(n) for n in rng.integers(side - crop + 1, size=2))
        image = image.resize((side, side), Image.Resampling.BICUBIC).crop((left, top, left + crop, top + crop))
        if self.flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        return to_tensor(image)

    def preview(self, count: int) -> Tensor:
        """(n, 3, crop, crop): pictures to look at, from testA beside trainA where there is one, n at most `count`."""
        test = self.folders[0].parent / "testA"
        paths = list_images(test) if self.folders[0].name == "trainA" and test.is_dir() else self.a
        size = (self.crop_size, self.crop_size)
        count = min(count, len(paths))
        return torch.stack(
            [to_tensor(self._read(paths, i).resize(size, Image.Resampling.BICUBIC)) for i in range(count)]
        )


def batches(data: Pairs, batch_size: int, first: int, last: int, threads: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (A, B), each (batch_size, 3, crop, crop), of steps first .. last - 1, read ahead of their use.

    Threads and not processes: decoding and resizing leave the interpreter's lock, and Ctrl-C has one process to stop.
    """

    def batch(step: int) -> tuple[Tensor, Tensor]:
        pairs = [data.pair(step * batch_size + i) for i in range(batch_size)]
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])

    pool = ThreadPoolExecutor(threads)
    try:
        ahead = deque(pool.submit(batch, step) for step in range(first, min(first + 2 * threads, last)))
        for step in range(first + len(ahead), last + len(ahead)):
            ready = ahead.popleft().result()
            if step < last:
                ahead.append(pool.submit(batch, step))
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)
