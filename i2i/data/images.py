"""Pictures out of files: 1 to 4 channels of 8 or 16 bits, upright, and with nothing lost in silence."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from i2i.data.formats import EXTENSIONS as EXTENSIONS
from i2i.data.formats import FORMATS
from i2i.data.limits import Opened, any_size, refuse_lost_depth, require_memory
from i2i.data.pages import (
    DEPTH,
    DESCRIPTION,
    SeveralPages,
    page_frames,
    refuse_hidden_planes,
    refuse_preview,
    which_page,
)
from i2i.errors import UsageError

# What reading a damaged file raises (SyntaxError: a broken PNG). UsageError is a ValueError too: catch it first.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

# Numbers of EXIF and TIFF tags.
ORIENTATION, BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, PHOTOMETRIC = 0x0112, 258, 277, 262
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Pillow keeps the high bytes of a 16-bit colour PNG. Read again by the name of the other byte order, it keeps the low
# ones. Grey with alpha has no such name, but its four bytes per pixel are what RGBA has: L high, L low, A high, A low.
LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}

# By the value of a TIFF's orientation tag: what turns its rows and columns upright.
TURNS = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


REC_601 = (0.299, 0.587, 0.114)  # red, green and blue in luminance

# What tifffile finds wrong with a damaged file goes to handlers that were set up, not to stderr for lack of any.
QUIET = logging.NullHandler()


class Picture(NamedTuple):
    """What a file's header tells. `bands`: a letter per channel, as Pillow writes them; "?" where a file names none.
    `page`: which of the file's pictures this is."""

    path: Path
    width: int  # upright
    height: int
    bands: str
    page: int = 0


def inspect_image(path: Path, page: int | None = None) -> Picture:
    """Reads the header only: quick enough for every file of a large folder. Raises one of UNREADABLE.

    `page`: of a file of several; without it, these raise SeveralPages.
    """
    with any_size(), told_in_one_way():
        image = _open(path, page)
        if image is not None:
            with image:
                return _header(path, image, page or 0)
        with _tiff_pages(path) as found:
            return _tiff_header(path, found[which_page(path, page, len(found))], page or 0)


def inspect_pages(path: Path, pages: str = "refuse") -> list[Picture]:
    """The picture of a file, or with `pages` the "first" or "all" of several. Raises one of UNREADABLE."""
    try:
        return [inspect_image(path)]
    except SeveralPages as found:
        if pages == "refuse":
            raise
        return [inspect_image(path, 0)] if pages == "first" else _inspect_all(path, found.count)


def _inspect_all(path: Path, count: int) -> list[Picture]:
    """As `inspect_image` of each page, but the file is opened once: to find a page means to walk through those before
    it, and a stack has hundreds."""
    pictures: list[Picture] = []
    with any_size(), told_in_one_way(), ExitStack() as stack:
        image = _identify(path)
        frames = page_frames(stack.enter_context(image)) if image is not None else []
        tiff: list[Any] = []
        for page in range(count):
            if image is not None and _turn_to(image, path, frames[page]):
                pictures.append(_header(path, image, page))
            else:
                tiff = tiff or stack.enter_context(_tiff_pages(path))
                pictures.append(_tiff_header(path, tiff[page], page))
    return pictures


def read_image(path: Path, channels: int = 3, page: int | None = None) -> np.ndarray:
    """(H, W, channels), upright. 8 bits per channel: uint8. 16 bits: float32 in 0 .. 255, every level kept apart.

    1 channel: luminance by Rec. 601; 2: grey and alpha, or a TIFF of two; 3: RGB, grey three times, alpha dropped;
    4: RGBA, CMYK, or a TIFF of four. Channels that a file has none of are not made up: UsageError with the path.
    `page`: of a file of several; without it, these raise SeveralPages, a UsageError too.
    Raises one of UNREADABLE when there is no picture to be had from the file.
    """
    with any_size(), told_in_one_way():
        pixels, bands = _decode(path, page)
    require_channels(Picture(path, pixels.shape[1], pixels.shape[0], bands), channels)
    if len(bands) == channels:
        return pixels
    if bands == "CMYK":
        pixels, bands = np.asarray(Image.fromarray(pixels, "CMYK").convert("RGB")), "RGB"
    if bands[0] == "L":
        return pixels[..., :1].repeat(channels, axis=2)
    return pixels[..., :3] if channels == 3 else luminance(pixels[..., :3])


def require_channels(picture: Picture, channels: int) -> None:
    """UsageError with the path unless `read_image` can give the picture with so many channels."""
    has = picture.bands
    if len(has) == channels or (channels in (1, 3) and has[:3] in ("L", "LA", "RGB", "CMY")):
        return
    raise UsageError(
        f"{picture.path}: {channels} channels asked for, but it has {len(has)}"
        + (f" ({has})" if "?" not in has else " and does not say which is what")
    )


def luminance(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W, 1) of the same dtype, by Rec. 601; 8 bits exactly as Pillow rounds them."""
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    return pixels @ np.array(REC_601, dtype=np.float32)[:, None]


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) in 0 .. 255 -> (C, H, W) float32 in [-1, 1]."""
    # In place: of a picture of 20,000 x 20,000 pixels each copy takes 5 GB.
    return torch.from_numpy(np.array(pixels, dtype=np.float32)).permute(2, 0, 1).div_(127.5).sub_(1)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def told_in_one_way() -> Iterator[None]:
    """Whatever Pillow stumbles over in a damaged file becomes one of UNREADABLE: readers of rare formats raise
    KeyError, IndexError, struct.error, EOFError and more."""
    try:
        yield
    except UNREADABLE:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {one_line(error)}") from error


def _open(path: Path, page: int | None) -> Opened | None:
    """A page in Pillow's hands, its pixels not read yet; None for a TIFF of which Pillow would lose something."""
    image = _identify(path)
    if image is None:
        return None
    try:
        known = page is not None and getattr(image, "is_animated", False)
        frames = _known_frames(path, os.stat(path).st_mtime_ns) if known else page_frames(image)
        if image.format == "TIFF":
            refuse_hidden_planes(image.tag_v2.get(DESCRIPTION), image.tag_v2.get(DEPTH), len(frames))
        if _turn_to(image, path, frames[which_page(path, page, len(frames))]):
            return image
    except BaseException:
        image.close()
        raise
    image.close()
    return None


@lru_cache(maxsize=1024)
def _known_frames(path: Path, changed: int) -> list[int]:
    """`page_frames` of a file of several, which is read page by page. `changed`: when the file was, last."""
    with Image.open(path, formats=FORMATS) as image:
        return page_frames(image)


def _identify(path: Path) -> Opened | None:
    """The file in Pillow's hands; None for a TIFF of a kind that Pillow does not know."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
        raise ValueError("not a regular file")
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            if file.read(4) in TIFF_MARKS:
                return None
        raise


def _turn_to(image: Opened, path: Path, frame: int) -> bool:
    """Whether Pillow loses nothing of the frame of a TIFF, to which it turns."""
    try:
        image.seek(frame)
    except SyntaxError:  # a mode that Pillow does not know, of a page behind the first
        if image.format == "TIFF":
            return False
        raise
    refuse_lost_depth(image, path)
    if image.format != "TIFF":
        return True
    refuse_preview(image)
    samples, bits = image.tag_v2.get(SAMPLES_PER_PIXEL, 1), image.tag_v2.get(BITS_PER_SAMPLE, (1,))
    return samples == len(image.getbands()) and (samples == 1 or max(bits) <= 8)


def _header(path: Path, image: Image.Image, page: int) -> Picture:
    bands = _bands(image)
    require_memory(*image.size, len(bands))
    # Pillow gives the size of a TIFF upright already. A PNG's own getexif would read all of its pixels.
    turned = image.format != "TIFF" and Image.Image.getexif(image).get(ORIENTATION, 1) > 4
    width, height = image.size[::-1] if turned else image.size
    return Picture(path, width, height, bands, page)


def _raw_mode(image: Opened) -> Any:
    """How Pillow is going to read the pixels: the name of a mode with its depth and byte order, perhaps in a tuple."""
    return image.tile[0][3] if image.tile else None


def _bands(image: Opened) -> str:
    """What `image` holds, whatever its depth and palette: L, LA, RGB, RGBA or CMYK, each a mode of Pillow's too."""
    if image.format == "PNG" and _raw_mode(image) in LOW_BYTES:
        return _raw_mode(image).partition(";")[0]  # Pillow's mode for LA is RGBA
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "1" or image.mode.startswith("I"):
        return "L"
    if image.mode == "P":
        return "RGBA" if "transparency" in image.info else "RGB"
    if image.mode in ("PA", "RGBa", "La"):
        return "LA" if image.mode == "La" else "RGBA"
    return image.mode if image.mode in ("L", "LA", "RGBA", "CMYK") else "RGB"


def _decode(path: Path, page: int | None) -> tuple[np.ndarray, str]:
    """(pixels as `read_image` gives them, their bands)."""
    image = _open(path, page)
    if image is None:
        return _decode_tiff(path, page)
    with image:
        bands, deep, raw = _bands(image), image.mode.startswith("I"), _raw_mode(image)
        width, height = image.size
        require_memory(width, height, len(bands))
        if image.format == "PNG" and raw in LOW_BYTES:
            if page:
                raise ValueError("an animated PNG of 16 bits, of which only the first frame can be read")
            return _decode_deep_png(path, raw), bands
        white_is_0 = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0
        # Pillow maps an uncompressed TIFF by its name into memory, and one that is to be turned by a quarter by its
        # upright size, which shears it (13.0).
        image.filename = ""
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(image if deep or image.mode == bands else image.convert(bands))
    if deep:
        # Pillow leaves the levels of a TIFF of 12 bits as they are, and those of a grey one whose 0 is white; it turns
        # the same of 8 bits over.
        top = 4095 if ";12" in str(raw) else 65535
        if pixels.min() < 0 or pixels.max() > top:
            raise ValueError("more than 16 bits per pixel")
        pixels = pixels.astype(np.float32)
        pixels = (top - pixels if white_is_0 else pixels) / np.float32(top / 255)
    return pixels if pixels.ndim == 3 else pixels[..., None], bands


def _decode_deep_png(path: Path, raw: str) -> np.ndarray:
    """Colour or alpha of 16 bits, from two readings: see LOW_BYTES."""
    high, low = _png_bytes(path, raw), _png_bytes(path, LOW_BYTES[raw])
    if raw == "LA;16B":
        high, low = low[..., ::2], low[..., 1::2]
    return (high.astype(np.float32) * 256 + low) / 257


def _png_bytes(path: Path, raw: str) -> np.ndarray:
    with Image.open(path) as image:
        codec, extents, offset, _ = image.tile[0]
        image.tile = [(codec, extents, offset, raw)]
        return np.asarray(ImageOps.exif_transpose(image))


def _decode_tiff(path: Path, number: int | None) -> tuple[np.ndarray, str]:
    """Several channels of 16 bits, or channels that the file does not name."""
    with _tiff_pages(path) as pages:
        page = pages[which_page(path, number, len(pages))]
        require_memory(page.imagewidth, page.imagelength, page.samplesperpixel)
        pixels, bands = page.asarray(), _tiff_bands(page)
        turn = TURNS.get(page.tags.valueof(ORIENTATION, 1))
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels of type {pixels.dtype} have no known range")
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    pixels = turn(pixels) if turn else pixels
    return np.ascontiguousarray(pixels) if pixels.dtype == np.uint8 else pixels.astype(np.float32) / 257, bands


@contextmanager
def _tiff_pages(path: Path) -> Iterator[list[Any]]:
    """The pages of a TIFF, each a `tifffile.TiffPage`."""
    try:
        import tifffile

        logging.getLogger(tifffile.__name__).addHandler(QUIET)
    except ImportError:
        raise UsageError(
            f"{path}: a TIFF with several channels of 16 bits, or with channels it does not name, needs tifffile: "
            "pip install tifffile imagecodecs"
        ) from None
    try:
        with tifffile.TiffFile(path) as file:
            pages = [page for page in file.pages if not (page.is_reduced or page.is_mask)] or [file.pages[0]]
            refuse_hidden_planes(pages[0].description, pages[0].imagedepth, len(pages))
            yield pages
    except (OSError, UsageError):
        raise
    except Exception as error:  # of a damaged file: of many kinds, none of them documented
        raise ValueError(one_line(error)) from error


def _tiff_header(path: Path, page: Any, number: int) -> Picture:
    size, bands = (page.imagewidth, page.imagelength), _tiff_bands(page)
    require_memory(*size, len(bands))
    turned = page.tags.valueof(ORIENTATION, 1) > 4
    width, height = size[::-1] if turned else size
    return Picture(path, width, height, bands, number)


def _tiff_bands(page: Any) -> str:
    count = page.samplesperpixel
    if count == 1:
        return "L"
    return "RGBA"[:count] if page.photometric == 2 and count in (3, 4) else "?" * count
