"""Sizes of all pictures looked at before a run begins, so that none of them ends it hours later."""

from __future__ import annotations

from collections.abc import Sequence

from i2i.config import Config
from i2i.data.images import Picture
from i2i.data.preprocess import ImageOptions, final_sizes
from i2i.errors import UsageError

ADVICE = "leave such pictures out, or choose a preprocess that scales or crops, for example resize_and_crop"


def check_sizes(sides: Sequence[Sequence[Picture]], options: ImageOptions, config: Config) -> None:
    """UsageError that names and counts the pictures which the networks cannot be shown, or not in one batch.

    sides: the pictures of A and of B.
    """
    reasons: dict[tuple[int, int], str] = {}  # by size: a folder has few, and many pictures
    refused: list[tuple[Picture, str]] = []
    for picture in (picture for side in sides for picture in side):
        for size in final_sizes(picture.width, picture.height, options):
            if size not in reasons:
                reasons[size] = reason(size, config)
            if reasons[size]:
                became = (
                    "" if size == picture[1:3] else f" ({size[0]} x {size[1]} after preprocess={options.preprocess})"
                )
                refused.append((picture, f"{picture.width} x {picture.height} pixels{became}, {reasons[size]}"))
                break
    if refused:
        picture, why = refused[0]
        more = f"; {len(refused) - 1} more cannot be taken, either" if len(refused) > 1 else ""
        raise UsageError(f"{picture.path}: {why}{more}: {ADVICE}")
    if config.one_size:
        require_one_size([picture for side in sides for picture in side], options, "images of A and B")
    elif config.batch_size > 1:
        for side in sides:
            require_one_size(side, options, f"with batch_size={config.batch_size}, all images of a domain")


def reason(size: tuple[int, int], config: Config) -> str:
    """Why images of this size cannot be trained on; empty where they can."""
    try:
        config.check_image(*size)
    except UsageError as error:
        return str(error)
    return ""


def require_one_size(pictures: Sequence[Picture], options: ImageOptions, which: str) -> None:
    first: tuple[tuple[int, int], Picture] | None = None
    for picture in pictures:
        for size in final_sizes(picture.width, picture.height, options):
            first = first or (size, picture)
            if size != first[0]:
                found = " and ".join(f"{width} x {height}" for width, height in (first[0], size))
                both = f"{first[1].path} and {picture.path}" if picture is not first[1] else f"{picture.path}"
                raise UsageError(
                    f"{which} must have one size, but preprocess={options.preprocess} makes {found} pixels of {both}: "
                    "choose one that crops, for example resize_and_crop"
                )
