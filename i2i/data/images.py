"""Pictures out of files: 1 to 4 channels of 8 or 16 bits, upright, and with nothing lost in silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from i2i.errors import UsageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff")
# What reading a damaged file raises (SyntaxError: a broken PNG). UsageError is a ValueError too: catch it first.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

ORIENTATION, BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 0x0112, 258, 277  # numbers of EXIF and TIFF tags
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


class Picture(NamedTuple):
    """What a file's header tells. `bands`: a letter per channel, as Pillow writes them; "?" where a file names none."""

    path: Path
    width: int  # upright
    height: int
    bands: str


def inspect_image(path: Path) -> Picture:
    """Reads the header only: quick enough for every file of a large folder. Raises one of UNREADABLE."""
    image = _open(path)
    if image is None:
        with _tiff_page(path) as page:
            turned = page.tags.valueof(ORIENTATION, 1) > 4
            size, bands = (page.imagewidth, page.imagelength), _tiff_bands(page)
    else:
        with image:
            # Pillow gives the size of a TIFF upright already. A PNG's own getexif would read all of its pixels.
            turned = image.format != "TIFF" and Image.Image.getexif(image).get(ORIENTATION, 1) > 4
            size, bands = image.size, _bands(image)
    return Picture(path, *(size[::-1] if turned else size), bands)


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """(H, W, channels), upright. 8 bits per channel: uint8. 16 bits: float32 in 0 .. 255, every level kept apart.

    1 channel: luminance by Rec. 601; 2: grey and alpha, or a TIFF of two; 3: RGB, grey three times, alpha dropped;
    4: RGBA, CMYK, or a TIFF of four. Channels that a file has none of are not made up: UsageError with the path.
    Raises one of UNREADABLE when there is no picture to be had from the file.
    """
    pixels, bands = _decode(path)
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
    return pixels @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, C) in 0 .. 255 -> (C, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(pixels, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _open(path: Path) -> Image.Image | None:
    """The picture in Pillow's hands, its pixels not read yet; None for a TIFF of which Pillow would lose something."""
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        if path.suffix.lower() in (".tif", ".tiff"):
            return None
        raise
    if image.format == "PPM" and image.mode == "RGB" and _raw_mode(image) != "RGB" and _raw_mode(image)[1] > 255:
        image.close()
        raise ValueError("a colour PPM of more than 8 bits, which would be cut to 8: save it as PNG or TIFF")
    if image.format == "TIFF":
        samples, bits = image.tag_v2.get(SAMPLES_PER_PIXEL, 1), image.tag_v2.get(BITS_PER_SAMPLE, (1,))
        if samples != len(image.getbands()) or (samples > 1 and max(bits) > 8):
            image.close()
            return None
    return image


def _raw_mode(image: Image.Image) -> Any:
    """How Pillow is going to read the pixels: the name of a mode with its depth and byte order, perhaps in a tuple."""
    return image.tile[0][3] if image.tile else None


def _bands(image: Image.Image) -> str:
    """What `image` holds, whatever its depth and palette: L, LA, RGB, RGBA or CMYK, each a mode of Pillow's too."""
    if image.format == "PNG" and _raw_mode(image) in LOW_BYTES:
        return _raw_mode(image).partition(";")[0]  # Pillow's mode for LA is RGBA
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "1" or image.mode.startswith("I"):
        return "L"
    if image.mode == "P":
        return "RGBA" if "transparency" in image.info else "RGB"
    return image.mode if image.mode in ("L", "LA", "RGBA", "CMYK") else "RGB"


def _decode(path: Path) -> tuple[np.ndarray, str]:
    """(pixels as `read_image` gives them, their bands)."""
    image = _open(path)
    if image is None:
        return _decode_tiff(path)
    with image:
        bands, deep, raw = _bands(image), image.mode.startswith("I"), _raw_mode(image)
        if image.format == "PNG" and raw in LOW_BYTES:
            return _decode_deep_png(path, raw), bands
        # Pillow maps an uncompressed TIFF by its name into memory, and one that is to be turned by a quarter by its
        # upright size, which shears it (13.0).
        image.filename = ""
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(image if deep or image.mode == bands else image.convert(bands))
    if deep:
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("more than 16 bits per pixel")
        pixels = pixels.astype(np.float32) / 257
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


def _decode_tiff(path: Path) -> tuple[np.ndarray, str]:
    """Several channels of 16 bits, or channels that the file does not name."""
    with _tiff_page(path) as page:
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
def _tiff_page(path: Path) -> Iterator[Any]:
    """The first page of a TIFF, a `tifffile.TiffPage`."""
    try:
        import tifffile
    except ImportError:
        raise UsageError(
            f"{path}: a TIFF with several channels of 16 bits, or with channels it does not name, needs tifffile: "
            "pip install tifffile imagecodecs"
        ) from None
    try:
        with tifffile.TiffFile(path) as file:
            yield file.pages[0]
    except OSError:
        raise
    except Exception as error:  # of a damaged file: of many kinds, none of them documented
        raise ValueError(one_line(error)) from error


def _tiff_bands(page: Any) -> str:
    count = page.samplesperpixel
    if count == 1:
        return "L"
    return "RGBA"[:count] if page.photometric == 2 and count in (3, 4) else "?" * count
