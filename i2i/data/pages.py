"""Files of more than one picture: multi-page TIFFs, stacks and animations. None is cut to its first page in silence."""

from __future__ import annotations

import re
from typing import Any

from i2i.data.limits import Opened
from i2i.errors import UsageError

PAGES = ("refuse", "first", "all")  # what may be done with such files

# Numbers of TIFF tags.
SUBFILE_TYPE, OLD_SUBFILE_TYPE, DESCRIPTION, SUB_IFDS, DEPTH = 254, 255, 270, 330, 32997
REDUCED, MASK = 1, 4  # bits of SUBFILE_TYPE: a preview or a level of a pyramid; the transparency of another page
# How ImageJ and tifffile say that planes lie behind the one that the header describes.
PLANES = (
    re.compile(r"\AImageJ=.*^images=(\d+)", re.DOTALL | re.MULTILINE),
    re.compile(r'\A\{"shape": \[(\d+), .*"truncated": true'),
)


class SeveralPages(UsageError):
    """A file holds `count` pictures, and it was not said which is meant."""

    def __init__(self, path: Any, count: int):
        super().__init__(f"{path} holds {count} pages or frames, of which only the first would be read")
        self.count = count


def page_frames(image: Opened) -> list[int]:
    """Numbers of the frames of an open picture that are pages: not the layers of a PSD, the previews that telephones
    put behind a JPEG, the masks, thumbnails and lower resolutions of a TIFF."""
    if image.format == "PSD" or not getattr(image, "is_animated", False):
        return [image.tell()]
    if image.format == "MPO":
        return like_the_first(image)
    if image.format != "TIFF":
        return list(range(image.n_frames))
    frames, frame = [], 0
    while True:
        try:
            image.seek(frame)
        except EOFError:
            break
        except SyntaxError:  # of a mode that Pillow does not know, and a page all the same; its tags are read
            pass
        kind = image.tag_v2.get(SUBFILE_TYPE, 0)
        if not (isinstance(kind, int) and kind & (REDUCED | MASK)) and image.tag_v2.get(OLD_SUBFILE_TYPE) != 2:
            frames.append(frame)
        frame += 1
    image.seek(0)
    return frames or [0]


def refuse_preview(image: Opened) -> None:
    """ValueError where an open TIFF shows but a preview, as raw photographs do: what it is of lies beneath."""
    kind = image.tag_v2.get(SUBFILE_TYPE, 0)
    if isinstance(kind, int) and kind & REDUCED and SUB_IFDS in image.tag_v2:
        raise ValueError("a raw photograph or the like, of which only the preview would be read: develop it first")


def like_the_first(image: Opened) -> list[int]:
    """Frames of an MPO that have the size and the channels of its first: those of a stereo picture or a series. The
    others are previews, depths and brightness gains. What its index points to may be gone."""
    shape, frames = (image.size, image.mode), [0]
    for frame in range(1, image.n_frames):
        try:
            image.seek(frame)
        except (OSError, ValueError, SyntaxError, EOFError):
            continue
        if (image.size, image.mode) == shape:
            frames.append(frame)
    image.seek(0)
    return frames


def refuse_hidden_planes(description: Any, depth: Any, pages: int) -> None:
    """ValueError where a TIFF of so many `pages` says that it holds more planes than that: in its `description`, as
    ImageJ and tifffile write it, or by the `depth` of a volume."""
    found = [pattern.search(description) for pattern in PLANES] if isinstance(description, str) else []
    planes = max([int(match[1]) for match in found if match], default=1)
    if isinstance(depth, int) and depth > 1:
        planes, pages = depth, 1
    if planes > pages:
        raise ValueError(
            f"a stack of {planes} planes behind one page, which cannot be read one by one: save it as pages"
        )


def which_page(path: Any, page: int | None, count: int) -> int:
    """The number of the page that is meant, of a file of `count`; SeveralPages where that was not said."""
    if page is None and count > 1:
        raise SeveralPages(path, count)
    if page is not None and page >= count:
        raise ValueError(f"has {count} pages, no page {page + 1}")
    return page or 0
