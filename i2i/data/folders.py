"""Which files a data set is made of: folders, lists of paths, pairs by name."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from i2i.data.images import EXTENSIONS, UNREADABLE, Picture, inspect_image, one_line
from i2i.errors import UsageError


@dataclass(frozen=True)
class Folder:
    """The pictures of one place: a folder, a list file, or a single picture."""

    place: Path
    files: list[Path]  # all that were found
    pictures: list[Picture]  # those that open, in the same order; at least one

    def describe(self) -> str:
        count = len(self.pictures)
        return f"{self.place} ({count} image{'s' if count > 1 else ''})"


def list_images(place: Path | str) -> Folder:
    """The pictures under a folder, sorted, links followed; or of a text file with one path per line, in its order, the
    paths relative to where it lies; or the one picture that `place` is. A file that does not open as a picture is named
    on stderr and left out. UsageError where none is left."""
    place = Path(place)
    if place.is_dir():
        files = walk(place)
    elif place.suffix.lower() in EXTENSIONS and place.is_file():
        files = [place]
    elif place.is_file():
        files = read_list(place)
    else:
        raise UsageError(f"{place}: no such folder of images, nor a file that lists them")
    pictures = []
    for path in files:
        try:
            pictures.append(inspect_image(path))
        except UsageError:
            raise
        except UNREADABLE as error:
            print(f"skipped, unreadable: {path} ({one_line(error)})", file=sys.stderr)
    if len(pictures) < len(files):
        print(f"{place}: {len(files) - len(pictures)} of {len(files)} images skipped", file=sys.stderr)
    if not pictures:
        found = f"none of its {len(files)} images can be read" if files else "no images in it"
        raise UsageError(f"{place}: {found} (looked for {' '.join(EXTENSIONS)}, subfolders too)")
    return Folder(place, files, pictures)


def walk(folder: Path) -> list[Path]:
    """Not by Path.rglob, which passes by folders that are links."""
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link to a folder above it would go round and round
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        files += [Path(parent, name) for name in names if name.lower().endswith(EXTENSIONS)]
    return sorted(files)


def read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: neither a picture nor a text file with one path per line") from None
    return [path.parent / line.strip() for line in lines if line.strip()]


def find_domains(data: tuple[str, ...], phase: str) -> list[Path]:
    """[A, B] from one folder that holds trainA and trainB, or from two places as they are. Of the test phase: testA and
    testB, or valA and valB where those are missing."""
    if len(data) == 2:
        return [Path(place) for place in data]
    root = _root(data)
    names = [(f"{name}A", f"{name}B") for name in _names(phase)]
    for a, b in names:
        if (root / a).is_dir() and (root / b).is_dir():
            return [root / a, root / b]
    a, b = names[0]
    missing = b if (root / a).is_dir() else a
    raise UsageError(f"{root} has no folder {missing}: put images into {root / a} and {root / b}, or name two folders")


def find_pairs(data: tuple[str, ...], phase: str) -> list[Path]:
    """[where A and B lie side by side in one picture] from the folder that holds `train`, or from a list file; [A, B]
    from two places. Of the test phase: `test`, or `val` where that is missing."""
    if len(data) == 2 or (len(data) == 1 and Path(data[0]).is_file()):
        return [Path(place) for place in data]
    root = _root(data)
    for name in _names(phase):
        if (root / name).is_dir():
            return [root / name]
    raise UsageError(
        f"{root} has no folder {phase}: put pictures of A and B side by side into {root / phase}, or name two folders "
        "whose files pair by name"
    )


def _names(phase: str) -> tuple[str, ...]:
    return ("test", "val") if phase == "test" else (phase,)


def _root(data: tuple[str, ...]) -> Path:
    if len(data) != 1:
        raise UsageError(f"data must be one folder or two, got {len(data)}")
    root = Path(data[0])
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    return root


def pair(a: Folder, b: Folder) -> list[tuple[Picture, Picture]]:
    """By name without the extension, subfolders included; two list files line by line. Pairs of which a file does not
    open are left out; a file without a partner is a UsageError."""
    if a.place.is_file() and b.place.is_file():
        if len(a.files) != len(b.files):
            raise UsageError(f"{a.place} lists {len(a.files)} images, {b.place} {len(b.files)}: they pair line by line")
        names = list(zip(a.files, b.files))
    else:
        of_a, of_b = _by_name(a), _by_name(b)
        for here, there, place in ((of_a, of_b, b.place), (of_b, of_a, a.place)):
            alone = sorted(here.keys() - there.keys())
            if alone:
                raise UsageError(f"{here[alone[0]]} has no partner in {place} ({len(alone)} of {len(here)} have none)")
        names = [(of_a[name], of_b[name]) for name in sorted(of_a)]
    opened = {picture.path: picture for picture in (*a.pictures, *b.pictures)}
    pairs = [(opened[x], opened[y]) for x, y in names if x in opened and y in opened]
    if not pairs:
        raise UsageError(f"{a.place} and {b.place}: no pair of which both images can be read")
    return pairs


def _by_name(folder: Folder) -> dict[Path, Path]:
    names: dict[Path, Path] = {}
    for path in folder.files:
        name = path.relative_to(folder.place).with_suffix("") if folder.place.is_dir() else Path(path.stem)
        if name in names:
            raise UsageError(f"{names[name]} and {path} have one name: which of them is meant in pairs?")
        names[name] = path
    return names
