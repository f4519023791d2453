"""Labelled pictures: attribute files in the format of CelebA's, or one folder for each class, as of RaFD."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from i2i.data.folders import inspect_all
from i2i.data.images import UNREADABLE, one_line, read_image, require_channels, to_tensor
from i2i.data.labels import Label
from i2i.data.listing import passed_over, tell, walk
from i2i.data.preprocess import resize
from i2i.errors import UsageError
from i2i.files import read_text

Entries = list[tuple[Path, Label]]

ATTRIBUTES, PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"
IMAGE_FOLDERS = ("images", "img_align_celeba")
SPLIT_SEED = 1234  # of the published split


def read_attributes(path: Path, names: Sequence[str]) -> list[tuple[str, Label]]:
    """(file name, values of `names` as 0 and 1) by line of an attribute file: the number of images, the names of all
    attributes, then lines of a file name and 1 or -1 for every attribute."""
    try:
        count, header, *lines = read_text(path).rstrip("\n").split("\n")
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not an attribute file ({one_line(error)})") from None
    columns = {name: place for place, name in enumerate(header.split(), 1)}
    missing = [name for name in names if name not in columns]
    if missing:
        raise UsageError(f"{path} has no attribute {', '.join(missing)}; there are {', '.join(columns)}")
    found, hidden = [], 0
    for number, line in enumerate(lines, 3):
        if not line.strip():
            continue
        file, *values = words = line.split()
        if len(values) != len(columns) or not set(values) <= {"1", "-1"}:
            raise UsageError(f"{path}, line {number}: want a file name and {len(columns)} values of 1 or -1")
        if any(map(passed_over, Path(file).parts)):
            hidden += 1
        else:
            found.append((file, tuple(int(words[columns[name]] == "1") for name in names)))
    if hidden:
        tell(f"{path}: {hidden} lines left out, they name hidden or system files")
    if count.strip() != str(len(found) + hidden):
        tell(f"{path}: its first line says {count.strip() or 'nothing'}, and {len(found) + hidden} images follow")
    return found


def find_attributes(data: Sequence[str], names: Sequence[str]) -> tuple[Path, Entries]:
    """(attribute file, pictures and their labels) from a folder that holds ATTRIBUTES and one of IMAGE_FOLDERS, or from
    the folder of the pictures and the attribute file."""
    if len(data) == 2:
        folder, table = map(Path, data)
    else:
        root = Path(*data)
        table = root / ATTRIBUTES
        folder = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root / IMAGE_FOLDERS[0])
    for place, there in ((folder, folder.is_dir()), (table, table.is_file())):
        if not there:
            raise UsageError(
                f"{place}: no such {'folder of pictures' if place is folder else 'attribute file'}; data must be a "
                f"folder with {ATTRIBUTES} and {' or '.join(IMAGE_FOLDERS)}, or pictures and attribute file"
            )
    entries = [(folder / file, label) for file, label in read_attributes(table, names)]
    if not entries or not entries[0][0].is_file():
        raise UsageError(f"{table}: {f'{entries[0][0]} is not there' if entries else 'it lists no images'}")
    return table, entries


def split_published(entries: Entries, test_images: int) -> tuple[Entries, Entries]:
    """(training, test): StarGAN's order of CelebA's lines, of which the first `test_images` are held out."""
    shuffled = list(entries)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    if test_images >= len(shuffled):
        raise UsageError(f"test_images must be less than the {len(shuffled)} images that there are, got {test_images}")
    return shuffled[test_images:], shuffled[:test_images]


def split_official(entries: Entries, partition: Path) -> tuple[Entries, Entries]:
    """(training, test) by CelebA's partition file, with lines of a file name and 0 (training), 1 or 2 (test)."""
    try:
        words = [line.split() for line in read_text(partition).split("\n") if line.strip()]
    except UnicodeDecodeError:
        raise UsageError(f"{partition}: not a text file") from None
    if any(len(pair) != 2 for pair in words):
        raise UsageError(f"{partition}: want lines of a file name and 0, 1 or 2")
    part = dict(words)
    train, test = ([entry for entry in entries if part.get(entry[0].name) == number] for number in "02")
    if not train:
        raise UsageError(f"{partition} leaves 0 images to train on and {len(test)} to test")
    return train, test


def find_classes(data: Sequence[str], names: Sequence[str]) -> tuple[Entries, Entries]:
    """(training, test) from a folder that holds one folder for each class; or holds `train`, and perhaps `test`, which
    do. Without a `test` to be used, the training images."""
    if len(data) != 1:
        raise UsageError(f"data must be one folder with the folders of the classes, got {len(data)}")
    root = Path(data[0])
    train = find_phase(root / "train" if (root / "train").is_dir() else root, names)
    if not (root / "test").is_dir():
        return train, train
    try:
        return train, find_phase(root / "test", names)
    except (UsageError, OSError) as error:
        tell(f"pictures of the run are of training images: {error}")
        return train, train


def find_phase(folder: Path, names: Sequence[str]) -> Entries:
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        there = sorted(path.name for path in folder.iterdir() if path.is_dir() and not passed_over(path.name))
        raise UsageError(
            f"{folder} has no folder {', '.join(missing)}; selected_attrs must be of {', '.join(there) or 'none'}"
        )
    label = dict(zip(names, np.eye(len(names), dtype=int).tolist()))
    found = {name: walk(folder / name) for name in names}
    empty = [name for name in names if not found[name]]
    if len(empty) == len(found):
        raise UsageError(f"{folder}: no images in the folders {', '.join(names)}")
    if empty:
        tell(f"{folder}: no images of {', '.join(empty)}")
    return [(path, tuple(label[name])) for name in names for path in found[name]]


def open_entries(place: Path, entries: Entries, channels: int, pages: str) -> tuple[Entries, list[int]]:
    """(pictures and their labels, page of each in its file), as `folders.inspect_all` opens them; UsageError where none
    is left."""
    found = inspect_all(place, [path for path, _ in entries], pages)
    opened = [(picture, label) for pictures, (_, label) in zip(found, entries) for picture in pictures]
    for picture, _ in opened:
        require_channels(picture, channels)
    if not opened:
        raise UsageError(f"{place}: none of its {len(entries)} images can be read")
    return [(picture.path, label) for picture, label in opened], [picture.page for picture, _ in opened]


class LabelledPictures:
    """Pictures with labels: a square from the middle, reduced to crop_size. `center_crop`: its side in pixels; 0, or
    more than a picture has: the largest there is. `pages`: of each picture, in files of several."""

    def __init__(
        self,
        entries: Entries,
        center_crop: int,
        crop_size: int,
        channels: int,
        flip: bool,
        pages: Sequence[int] | None = None,
    ):
        self.entries = entries
        self.labels = [label for _, label in entries]
        self.center_crop, self.crop_size, self.channels, self.flip = center_crop, crop_size, channels, flip
        self.pages = pages
        self.skipped: set[Path] = set()

    def image(self, index: int, rng: np.random.Generator | None) -> Tensor:
        """(channels, crop_size, crop_size) in [-1, 1] of picture `index`, or of the next one with the same label where
        it cannot be decoded. Mirrored half of the time if there is a generator."""
        for offset in range(len(self.entries)):
            place = (index + offset) % len(self.entries)
            path, label = self.entries[place]
            if label != self.labels[index] or path in self.skipped:
                continue
            try:
                return self.cut(read_image(path, self.channels, self.pages[place] if self.pages else None), rng)
            except UsageError:
                raise
            except UNREADABLE as error:
                self.skipped.add(path)
                print(f"\nskipped, unreadable: {path} ({one_line(error)})", file=sys.stderr)
        raise UsageError(f"{self.entries[index][0]}: neither it nor another image of its label can be read")

    def cut(self, image: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        side = min(self.center_crop or max(image.shape), *image.shape[:2])
        top, left = (round((extent - side) / 2) for extent in image.shape[:2])
        square = image[top : top + side, left : left + side]
        image = resize(square, self.crop_size, self.crop_size, Image.Resampling.BILINEAR)  # as published
        return to_tensor(image[:, ::-1] if self.flip and rng is not None and rng.random() < 0.5 else image)

    def describe(self) -> str:
        return f"{len(self.entries)} labelled images"
