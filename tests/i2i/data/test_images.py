"""Reading pictures: every depth and number of channels comes out as written, or is refused by name."""

import struct
import sys
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from i2i.data import ImageOptions, inspect_image, open_dataset, read_image, to_tensor
from i2i.errors import UsageError
from i2i.inference.metrics import compare_pairs

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by the number of channels


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def write_png16(path, levels, orientation=0, place=1):
    """Pillow writes 16 bits for grey only. Rows without prediction, and an EXIF chunk if asked for; `place` 1: before
    the pixels, 2: behind them."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        chunks.insert(place, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    return path


def write_tiff(path, levels, **kw):
    tifffile.imwrite(path, levels, **{"photometric": "minisblack", "planarconfig": "contig"} | kw)
    return path


def levels16(path, channels):
    """What `read_image` gives, put back to 0 .. 65535; fails if a level is not exactly one of these."""
    image = read_image(path, channels)
    assert image.dtype == np.float32
    levels = image.astype(np.float64) * 257
    assert np.abs(levels - levels.round()).max() < 0.01  # float32 of 255 is exact to 1.5e-5, times 257
    return levels.round().astype(np.uint16)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "RGB"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = Image.fromarray(np.repeat(np.linspace(0, 255, 16, dtype=np.uint8)[None], 8, 0))
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    grey.convert("RGB").convert(mode).save(path)
    image = read_image(path, 3)
    assert image.shape == (8, 16, 3) and image.dtype == np.uint8
    if mode != "1":  # dithered
        np.testing.assert_allclose(image[0, :, 1], np.linspace(0, 255, 16), atol=30 if mode == "P" else 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_every_level(tmp_path, channels):
    levels = noise(6, 9, channels, dtype=np.uint16)
    path = write_png16(tmp_path / "x.png", levels)
    np.testing.assert_array_equal(levels16(path, channels), levels)
    assert inspect_image(path)[1:4] == (9, 6, "L LA RGB RGBA".split()[channels - 1])


@pytest.mark.parametrize("kw", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"byteorder": ">"}], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_tiff_keeps_every_level(tmp_path, channels, kw):
    levels = noise(6, 9, channels, dtype=np.uint16)
    written = np.moveaxis(levels, -1, 0) if kw.get("planarconfig") == "separate" else levels
    path = write_tiff(tmp_path / "x.TIF", written if channels > 1 else levels[..., 0], **kw if channels > 1 else {})
    np.testing.assert_array_equal(levels16(path, channels), levels)
    assert inspect_image(path)[1:3] == (9, 6)


def test_8_bit_tiff_of_several_channels(tmp_path):
    for channels in (2, 4):
        levels = noise(6, 9, channels)
        image = read_image(write_tiff(tmp_path / "x.tif", levels), channels)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, levels)


def test_alpha_is_dropped_or_kept(tmp_path):
    levels = noise(6, 9, 4)
    for name in ("x.png", "x.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name, 3), levels[..., :3])
        np.testing.assert_array_equal(read_image(tmp_path / name, 4), levels)
    deep = noise(6, 9, 4, dtype=np.uint16)
    for path in (write_png16(tmp_path / "d.png", deep), write_tiff(tmp_path / "d.tif", deep, photometric="rgb")):
        np.testing.assert_array_equal(levels16(path, 3), deep[..., :3])
    Image.fromarray(levels[..., :2]).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png", 2), levels[..., :2])
    np.testing.assert_array_equal(read_image(tmp_path / "la.png", 3), levels[..., :1].repeat(3, 2))


def test_luminance(tmp_path):
    """8 bits as the published code has it, by Pillow; 16 bits by the weights of Rec. 601."""
    levels = noise(6, 9, 3)
    Image.fromarray(levels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 1)[..., 0], Image.fromarray(levels).convert("L"))
    deep = noise(6, 9, 3, dtype=np.uint16)
    want = deep @ np.array([0.299, 0.587, 0.114]) / 257
    # four roundings of float32 numbers below 256
    np.testing.assert_allclose(read_image(write_png16(tmp_path / "d.png", deep), 1)[..., 0], want, atol=6e-5, rtol=0)
    grey = deep[..., :1]
    np.testing.assert_array_equal(levels16(write_png16(tmp_path / "g.png", grey), 3), grey.repeat(3, 2))


@pytest.mark.parametrize(
    ("name", "shape", "channels"),
    [
        ("x.jpg", (6, 9), 4),
        ("x.jpg", (6, 9), 2),
        ("x.jpg", (6, 9, 3), 4),
        ("x.png", (6, 9, 4), 2),
        ("x.png", (6, 9, 2), 4),
    ],
)
def test_channels_are_not_made_up(tmp_path, name, shape, channels):
    Image.fromarray(noise(*shape)).save(tmp_path / name)
    with pytest.raises(UsageError, match=f"{name}: {channels} channels asked for, but it has"):
        read_image(tmp_path / name, channels)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("wanted", [1, 3])
def test_channels_without_a_meaning_are_not_colours(tmp_path, channels, wanted):
    path = write_tiff(tmp_path / "x.tif", noise(6, 9, channels, dtype=np.uint16))
    with pytest.raises(UsageError, match=f"it has {channels} and does not say which is what"):
        read_image(path, wanted)


def test_ranges_that_are_not_known(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="no known range"):
        read_image(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ValueError, match="more than 16 bits"):
        read_image(tmp_path / "i.tif")
    with pytest.raises(ValueError, match="type float32"):
        read_image(write_tiff(tmp_path / "m.tif", np.zeros((4, 4, 4), np.float32)), 4)


@pytest.mark.parametrize("depth", [255, 65535])
def test_ppm(tmp_path, depth):
    """Pillow would cut colours of 16 bits to 8 and say nothing."""
    levels = noise(6, 9, 3, dtype=np.uint8 if depth == 255 else np.uint16)
    data = levels if depth == 255 else levels.astype(">u2")
    (tmp_path / "x.ppm").write_bytes(b"P6 9 6 %d\n" % depth + data.tobytes())
    if depth == 255:
        np.testing.assert_array_equal(read_image(tmp_path / "x.ppm"), levels)
        return
    for read in (read_image, inspect_image):
        with pytest.raises(ValueError, match="cut to 8"):
            read(tmp_path / "x.ppm")


def upright(levels, orientation):
    """By the words of the EXIF standard: where the first row and the first column of the file are to be seen."""
    if orientation >= 5:  # the first row is seen at a side
        levels = levels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):  # first row at the bottom; 7, 8: first column at the bottom
        levels = levels[::-1]
    if orientation in (2, 3, 6, 7):  # first column at the right; 6, 7: first row at the right
        levels = levels[:, ::-1]
    return levels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = np.outer(np.arange(0, 240, 40), np.linspace(0.1, 1, 9)).astype(np.uint8)  # smooth: JPEG keeps it
    for name in ("x.jpg", "x.png", "x.tif"):
        Image.fromarray(grey).save(tmp_path / name, exif=exif, **{"quality": 100} if name == "x.jpg" else {})
        image = read_image(tmp_path / name, 1)[..., 0]
        np.testing.assert_allclose(image.astype(int), upright(grey, orientation), atol=3 if name == "x.jpg" else 0)
    deep = noise(6, 9, 3, dtype=np.uint16)
    tag = [(0x0112, "H", 1, orientation)]
    for path in (
        write_png16(tmp_path / "d.png", deep, orientation),
        write_tiff(tmp_path / "d.tif", deep, photometric="rgb", extratags=tag),
        write_tiff(tmp_path / "m.tif", deep, extratags=tag),
    ):
        np.testing.assert_array_equal(levels16(path, 3), upright(deep, orientation))
    for path in tmp_path.iterdir():
        assert inspect_image(path)[1:3] == upright(grey, orientation).shape[::-1]


def test_values_are_in_minus_one_to_one(tmp_path):
    x = to_tensor(np.array([[[0, 255, 51]]], dtype=np.uint8))
    assert x.shape == (3, 1, 1) and x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.tensor([-1.0, 1.0, -0.6]))
    path = write_png16(tmp_path / "x.png", np.array([[[0, 65535, 1]]], dtype=np.uint16))
    torch.testing.assert_close(to_tensor(read_image(path)).flatten(), torch.tensor([-1.0, 1.0, 2 / 65535 - 1]))


def test_without_tifffile_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "x.tif", noise(6, 9, 4, dtype=np.uint16))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UsageError, match="x.tif: .*pip install tifffile imagecodecs"):
        read_image(path, 4)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_broken_files_say_so(tmp_path, name):
    deep = noise(60, 90, 3, dtype=np.uint16)
    path = tmp_path / name
    write_png16(path, deep) if name == "x.png" else write_tiff(path, deep, photometric="rgb")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises((OSError, ValueError, SyntaxError)):
        read_image(path)


def test_a_pair_that_is_of_two_sizes_after_all(tmp_path):
    """The header says one size; behind the pixels stands that they are to be turned."""
    levels = noise(40, 64, 3, dtype=np.uint16)
    for side, orientation, place in (("a", 6, 1), ("b", 6, 2), ("c", 0, 1)):
        (tmp_path / side).mkdir()
        write_png16(tmp_path / side / "x.png", levels, orientation, place)
    options = ImageOptions(load_size=32, crop_size=32)
    with pytest.raises(UsageError, match="pairs must be of one size"):
        open_dataset("aligned", (str(tmp_path / "a"), str(tmp_path / "c")), options=options)
    pairs = open_dataset("aligned", (str(tmp_path / "b"), str(tmp_path / "c")), options=options)
    with pytest.raises(UsageError, match="b/x.png and .*c/x.png are no longer of one size"):
        pairs.item(0)
    with pytest.raises(UsageError, match="are not of one size when upright"):
        compare_pairs(pairs.entries, ("psnr",))
