"""What lies in a folder or stands in a list: the pictures, and a word on everything that is left out."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from i2i import distributed
from i2i.data.formats import EXTENSIONS
from i2i.errors import UsageError
from i2i.files import read_text

# Of Windows, macOS, and the NAS systems of Synology and QNAP; in lower case. Their thumbnails are pictures, too.
SYSTEM_NAMES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"),
    *("__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
}
EXAMPLES = "the endings that Pillow reads, such as .jpg .png .tif .webp; subfolders too"


def tell(text: str) -> None:
    """A line on stderr, of the first process only."""
    if distributed.rank() == 0:
        print(text, file=sys.stderr, flush=True)


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or kept by a system for itself."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM_NAMES


def is_picture(name: str) -> bool:
    """By its ending alone, in any case."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def walk(folder: Path) -> list[Path]:
    """The pictures under a folder, by their endings, sorted; links are followed. What is left out is counted on stderr;
    hidden and system files and folders are not there at all. UsageError where the folder cannot be listed.

    Not by Path.rglob, which passes by folders that are links. A folder that links lead to twice, or in a circle, is
    walked once, and as what it is itself before any link to it.
    """
    files: list[Path] = []
    others: list[str] = []
    locked: list[OSError] = []
    again: list[Path] = []
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        start = waiting.pop(0)
        if os.path.realpath(start) in seen:
            again.append(start)
            continue
        for parent, folders, names in os.walk(start, onerror=locked.append):
            if os.path.realpath(parent) in seen:  # a link has led here before
                again.append(Path(parent))
                folders.clear()
                continue
            seen.add(os.path.realpath(parent))
            kept = sorted(name for name in folders if not passed_over(name))
            waiting += [Path(parent, name) for name in kept if os.path.islink(os.path.join(parent, name))]
            folders[:] = kept
            shown = [name for name in names if not passed_over(name)]
            files += [Path(parent, name) for name in shown if is_picture(name)]
            others += [name for name in shown if not is_picture(name)]
    if any(Path(error.filename) == folder for error in locked):
        raise UsageError(f"{folder}: cannot be listed ({locked[0].strerror})")
    if others:
        tell(f"{folder}: {files_of(others)} left out, no picture{'s' * (len(others) > 1)} by ending: {endings(others)}")
    if again:
        more = f" and {len(again) - 1} more" if len(again) > 1 else ""
        tell(f"{folder}: {again[0]}{more} left out, because a link leads to what is there already")
    for error in locked:
        tell(f"{folder}: {error.filename} left out, it cannot be listed ({error.strerror})")
    return sorted(files)


def files_of(names: list[str]) -> str:
    return f"{len(names)} file{'s' if len(names) > 1 else ''}"


def endings(names: Iterable[str]) -> str:
    """`.txt 8, .json 3`, the most frequent first; at most ten of them."""
    found = Counter(os.path.splitext(name)[1].lower() or "without ending" for name in names)
    counts = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{sum(count for _, count in counts[10:])} of other endings"] if len(counts) > 10 else []
    return ", ".join([f"{ending} {count}" for ending, count in counts[:10]] + more)


def read_list(path: Path) -> list[Path]:
    """The paths of a list file, relative to where it lies, without those of hidden and system files."""
    lines = list_lines(path)
    shown = [file for file, hidden in lines if not hidden]
    if len(shown) < len(lines):
        tell(f"{path}: {len(lines) - len(shown)} of {len(lines)} lines left out, they name hidden or system files")
    return shown


def list_lines(path: Path) -> list[tuple[Path, bool]]:
    """(file, whether to pass it over) by line of a list file.

    A name that is not UTF-8 stands in a list as the bytes that it is on disk. A hidden folder on the way to a file is
    the choice of who wrote the list; hidden files, and whatever lies in a system's folders, `find` has brought in.
    """
    text = read_text(path, "surrogateescape")
    if "\0" in text:
        raise UsageError(f"{path}: neither a picture nor a text file with one path per line")
    lines = [Path(line.strip()) for line in text.split("\n") if line.strip()]
    return [(path.parent / line, passed_over(line.name) or any(map(in_system, line.parts))) for line in lines]


def in_system(part: str) -> bool:
    return part.lower() in SYSTEM_NAMES or part == ".ipynb_checkpoints"
