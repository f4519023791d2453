"""What a picture may be: as large as memory is, and no deeper than what Pillow hands on."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

Opened = Any  # an open picture of Pillow, whose formats have attributes of their own
HEAD = 1 << 20  # bytes at the front of a file that are searched for its depth
SGI_DEPTH = 3  # where the bytes per channel stand

_lock, _inside, _limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS


@contextmanager
def any_size() -> Iterator[None]:
    """Pillow's limit on pixels lifted for files that a user has named, and put back for everything else in the process.
    What bounds them here is memory (`require_memory`)."""
    global _inside, _limit
    with _lock:
        if not _inside:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit


def require_memory(width: int, height: int, channels: int) -> None:
    """ValueError where the decoded pixels alone are more than all memory: a few bytes of PNG can claim any size."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return
    if width * height * channels > memory:
        raise ValueError(f"{width} x {height} pixels, more than the {memory / 2**30:.0f} GB of memory")


def refuse_lost_depth(image: Opened, path: Path) -> None:
    """ValueError where Pillow would cut an open picture's channels to 8 bits. (16-bit PNG and TIFF are read otherwise,
    see `images`.)"""
    if image.mode.startswith(("I", "F")) or image.format not in ("PPM", "JPEG2000", "AVIF", "SGI"):
        return
    if image.format == "PPM":
        raw: Any = image.tile[0][3] if image.tile else None
        deep = image.mode == "RGB" and raw != "RGB" and raw[1] > 255
    else:
        with open(path, "rb") as file:
            head = file.read(HEAD)
        if image.format == "SGI":
            deep = head[SGI_DEPTH] > 1
        elif image.format == "AVIF":
            deep = any(head[found.end() + 2] & 0x40 for found in re.finditer(b"av1C", head[:-3]))
        else:
            deep = max(jpeg2000_depths(head), default=8) > 8
    if deep:
        raise ValueError(f"{image.format} of more than 8 bits, which would be cut to 8: save it as PNG or TIFF")


def jpeg2000_depths(head: bytes) -> list[int]:
    """Bits of each channel, from the SIZ marker of the codestream."""
    start = head.find(b"\xff\x4f\xff\x51")
    if start < 0:
        return []
    channels = int.from_bytes(head[start + 40 : start + 42], "big")
    return [(depth & 0x7F) + 1 for depth in head[start + 42 : start + 42 + 3 * channels : 3]]
