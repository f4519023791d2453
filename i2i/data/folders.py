"""Which files a data set is made of: folders, lists of paths, pairs by name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from i2i.data.images import UNREADABLE, Picture, inspect_pages, one_line
from i2i.data.listing import EXAMPLES, is_picture, list_lines, read_list, tell, walk
from i2i.data.pages import SeveralPages
from i2i.errors import UsageError

__all__ = ["Folder", "find_domains", "find_pairs", "inspect_all", "list_images", "pair", "read_list", "walk"]

TEST_PHASES = ("test", "val")  # folders of the one are looked for before those of the other
READERS = 8  # threads: on a disk in the network, opening a file is waiting
PATIENCE = 3.0  # seconds without a word


@dataclass(frozen=True)
class Folder:
    """The pictures of one place: a folder, a list file, or a single picture."""

    place: Path
    files: list[Path]  # all that were found; of a list file, a line each
    pictures: list[Picture]  # those that open, in the same order; at least one
    passed_over: set[Path] = field(default_factory=set)  # of the files, those that a list should not have named

    def describe(self) -> str:
        count = len(self.pictures)
        return f"{self.place} ({count} image{'s' if count > 1 else ''})"


def list_images(place: Path | str, pages: str = "refuse") -> Folder:
    """The pictures under a folder, sorted, links followed; or of a text file with one path per line, in its order, the
    paths relative to where it lies; or the one picture that `place` is. A file that does not open as a picture is named
    on stderr and left out, and so is, counted, what is no picture by its ending (see `listing.walk`). UsageError where
    none is left, and where a file holds several pictures, unless `pages` takes the "first" or "all" of them."""
    place = Path(place)
    passed_over: set[Path] = set()
    if place.is_dir():
        files = walk(place)
    elif is_picture(place.name) and place.is_file():
        files = [place]
    elif place.is_file():
        lines = list_lines(place)
        files, passed_over = [file for file, _ in lines], {file for file, hidden in lines if hidden}
        if passed_over:
            tell(
                f"{place}: {sum(hidden for _, hidden in lines)} of {len(lines)} lines left out: hidden or system files"
            )
    else:
        raise UsageError(f"{place}: no such folder of images, nor a file that lists them")
    wanted = [file for file in files if file not in passed_over]
    pictures = [picture for found in inspect_all(place, wanted, pages) for picture in found]
    if not pictures:
        found = f"none of its {len(wanted)} images can be read" if wanted else "no images in it"
        raise UsageError(f"{place}: {found} (looked for {EXAMPLES})")
    return Folder(place, files, pictures, passed_over)


def inspect_all(place: Path, files: Iterable[Path], pages: str) -> list[list[Picture]]:
    """For each of `files`, which were found at `place`, the pictures in it: none where it cannot be opened, which is
    told. UsageError: files of several pictures, unless `pages` says what to do with them."""
    files = list(files)
    found: list[list[Picture]] = []
    several: list[SeveralPages] = []
    unreadable, told = 0, time.monotonic()
    for path, result in zip(files, in_threads(files, pages), strict=True):
        found.append([] if isinstance(result, Exception) else result)
        if isinstance(result, SeveralPages):
            several.append(result)
        elif isinstance(result, UsageError):
            raise result
        elif isinstance(result, Exception):
            unreadable += 1
            tell(f"skipped, unreadable: {path} ({one_line(result)})")
        if time.monotonic() - told > PATIENCE:
            told = time.monotonic()
            tell(f"{place}: opened {len(found)} of {len(files)} images")
    if unreadable:
        tell(f"{place}: {unreadable} of {len(files)} images skipped")
    if several:
        more = f" (and {len(several) - 1} more such files)" if len(several) > 1 else ""
        raise UsageError(
            f"{several[0]}{more}: --pages all takes each as a picture of its own, --pages first only the first"
        )
    return found


def in_threads(files: list[Path], pages: str) -> Iterator[list[Picture] | Exception]:
    """What `inspect_pages` returns or raises for each of `files`, in their order."""

    def inspect(path: Path) -> list[Picture] | Exception:
        try:
            return inspect_pages(path, pages)
        except UNREADABLE as error:
            return error

    pool = ThreadPoolExecutor(READERS)
    try:
        yield from pool.map(inspect, files)
    finally:
        pool.shutdown(cancel_futures=True)


def find_domains(data: Sequence[str], phase: str) -> list[Path]:
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


def find_pairs(data: Sequence[str], phase: str) -> list[Path]:
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
    return TEST_PHASES if phase == "test" else (phase,)


def _root(data: Sequence[str]) -> Path:
    if len(data) != 1:
        raise UsageError(f"data must be one folder or two, got {len(data)}")
    root = Path(data[0])
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    return root


def pair(a: Folder, b: Folder) -> list[tuple[Picture, Picture]]:
    """By name without the extension, subfolders included; two list files line by line. Pairs of which a file does not
    open are left out; a file without a partner is a UsageError, and so are pages without one."""
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
    opened: dict[Path, dict[int, Picture]] = {}
    for picture in (*a.pictures, *b.pictures):
        opened.setdefault(picture.path, {})[picture.page] = picture
    pairs = []
    for x, y in names:
        if x in opened and y in opened:
            if opened[x].keys() != opened[y].keys():
                counts = len(opened[x]), len(opened[y])
                raise UsageError(f"{x} and its partner {y} hold {counts[0]} and {counts[1]} pages")
            pairs += [(opened[x][page], opened[y][page]) for page in opened[x]]
    left = sum(x not in opened or y not in opened for x, y in names)
    if left and pairs:
        tell(f"{a.place} and {b.place}: {left} of {len(names)} pairs left out")
    if not pairs:
        raise UsageError(f"{a.place} and {b.place}: no pair of which both images can be read")
    return pairs


def _by_name(folder: Folder) -> dict[Path, Path]:
    names: dict[Path, Path] = {}
    for path in folder.files:
        if path in folder.passed_over:
            continue
        name = path.relative_to(folder.place).with_suffix("") if folder.place.is_dir() else Path(path.stem)
        if name in names:
            raise UsageError(f"{names[name]} and {path} have one name: which of them is meant in pairs?")
        names[name] = path
    return names
