"""What is translated and where it goes: no result of an earlier run is taken for an image, and nothing is replaced but
a result of the same image by the same weights.

So a command can be given again, after an interruption or more training, and two runs into one folder by mistake cost
nothing. Results say themselves what they are of, in a text chunk of the PNG, for a list of them beside would be lost.
"""

from __future__ import annotations

import hashlib
import os
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from i2i.data.listing import EXAMPLES, is_picture, read_list, walk
from i2i.errors import UsageError
from i2i.files import refuse_under_file

KEYWORD = b"i2i"  # of the text chunk
HEAD = 33  # bytes of a PNG's signature and header, after which it stands


class Job(NamedTuple):
    source: Path
    target: Path


def find_jobs(inputs: Iterable[Path], output: Path) -> list[Job]:
    """What to translate, in order, and where it goes: <stem>.png in the same subfolders as in the folder given.

    UsageError: nothing to translate, a missing file, two results with one name, or a result in place of an input.
    """
    if is_picture(output.name) and not output.is_dir():
        raise UsageError(f"--output {output}: must be a folder; results have the names of their images")
    refuse_under_file(output)
    jobs = []
    for given in inputs:
        if given.is_dir():
            sources = walk(given)
            if not lies_in(given, output):  # results of an earlier run into a folder inside this one are no inputs
                of_output = {folder for folder in {p.parent for p in sources} if lies_in(folder, output)}
                sources = [p for p in sources if p.parent not in of_output and not linked(p, output)]
            if not sources:
                raise UsageError(f"{given}: no images in it (looked for {EXAMPLES})")
            jobs += [Job(p, output / p.relative_to(given).with_suffix(".png")) for p in sources]
        elif given.is_file():
            sources = [given] if is_picture(given.name) else read_list(given)
            jobs += [Job(p, output / f"{p.stem}.png") for p in sources]
        else:
            raise UsageError(f"{given}: no such file or folder")
    refuse_collisions([(job.target, job.source) for job in jobs], output)
    return jobs


def lies_in(folder: Path, output: Path) -> bool:
    """Whether `folder` is `output` or inside it, however the two are written: by links, `..`, or other letters on a
    file system that does not tell them apart."""
    real = Path(os.path.realpath(folder))
    return output.is_dir() and any(place.samefile(output) for place in (real, *real.parents))


def linked(path: Path, output: Path) -> bool:
    """Whether `path` is a link to a file in `output`."""
    return path.is_symlink() and path.exists() and lies_in(Path(os.path.realpath(path)).parent, output)


def refuse_collisions(planned: Sequence[tuple[Path, Path]], output: Path) -> None:
    """UsageError where two results would be one file, or a file and a folder, or one would replace an image.
    `planned`: every result and the image that it is of."""
    folds = ignores_case(output)

    def name(path: Path) -> str:
        return unicodedata.normalize("NFC", str(path)).casefold() if folds else str(path)

    taken: dict[str, tuple[Path, Path]] = {}
    for target, source in planned:
        first = taken.setdefault(name(target), (target, source))
        if first[0] is not target:
            raise UsageError(f"{first[1]} and {source} would both become {target}")
    for target, source in planned:
        for folder in target.parents:
            if name(folder) in taken:
                raise UsageError(f"{taken[name(folder)][1]} would become {folder}, and {source} a file in it")
    sources = {identity(source): source for _, source in planned}
    for target, _ in planned:
        if identity(target) in sources:
            raise UsageError(f"{target} would replace one of the images; choose another output folder")


def identity(path: Path) -> Any:
    """Equal for two names of one file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return str(path)
    return found.st_dev, found.st_ino


def ignores_case(folder: Path) -> bool:
    """Whether the file system takes a and A for one name, found out by a folder that is there."""
    for place in (folder.absolute(), *folder.absolute().parents):
        other = place.with_name(place.name.swapcase()) if place.name else place
        if place.exists() and other.name != place.name:
            return other.exists() and other.samefile(place)
    return False


def mark(*parts: Any) -> str:
    """Of a result: a digest of what it is of, which tells nobody the folders of this machine. Paths count as the files
    that they lead to."""
    words = (os.path.realpath(part) if isinstance(part, Path) else str(part) for part in parts)
    return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:32]


def marked(png: bytes, text: str) -> bytes:
    """`png` with its mark."""
    chunk = b"tEXt" + KEYWORD + b"\0" + text.encode()
    return png[:HEAD] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[HEAD:]


def mark_of(path: Path) -> str | None:
    """Of a PNG that i2i wrote, its mark."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD + 8 + len(KEYWORD) + 1 + 32)
    except OSError:
        return None
    start = HEAD + 8 + len(KEYWORD) + 1
    if head[HEAD + 4 : start] != b"tEXt" + KEYWORD + b"\0":
        return None
    return head[start:].decode("latin-1")


def refuse_foreign(planned: Iterable[tuple[Path, Path, str]]) -> None:
    """UsageError where a result (target, source, mark) would replace what is not the same result of before."""
    planned = list(planned)
    for folder in dict.fromkeys(target.parent for target, _, _ in planned):
        refuse_under_file(folder)
    foreign = [
        (target, source) for target, source, own in planned if os.path.lexists(target) and mark_of(target) != own
    ]
    if foreign:
        target, source = foreign[0]
        more = f" (nor are {len(foreign) - 1} more of what is there)" if len(foreign) > 1 else ""
        raise UsageError(
            f"{target} is there already and is no earlier result of {source} with these weights{more}; choose another "
            "--output, or move it away"
        )
