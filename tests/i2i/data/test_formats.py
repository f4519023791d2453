"""Files that people have: what counts as a picture, what holds several, and what would lose something in silence."""

import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from i2i.config import Config
from i2i.data import EXTENSIONS, ImageOptions, inspect_image, list_images, open_dataset, read_image
from i2i.data.formats import FORMATS, NOT_TAKEN
from i2i.data.pages import SeveralPages
from i2i.errors import UsageError
from i2i.files import write_atomically


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


LEVELS = noise(32, 48, 3)
LOSSLESS = {"x.webp": {"lossless": True}, "x.jp2": {"irreversible": False}, "x.avif": {"quality": 100}}


# --- what counts


def test_endings_are_those_that_pillow_reads_as_pictures():
    for ending in (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tga", ".pgm", ".ppm", ".tif", ".mpo"):
        assert ending in EXTENSIONS
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".hdf", ".fits", ".wmf", ".txt", ".heic"} & set(EXTENSIONS)
    assert not set(FORMATS) & set(NOT_TAKEN)


@pytest.mark.parametrize("ending", sorted({*EXTENSIONS} & {*Image.registered_extensions()}))
def test_whatever_pillow_can_write_is_found_and_read(tmp_path, ending):
    """In upper case; as Pillow reads it itself."""
    path, written = tmp_path / f"X{ending.upper()}", None
    for mode in ("RGB", "P", "L", "1"):
        try:
            picture = Image.fromarray(LEVELS).convert(mode)
            picture.save(path, format=Image.registered_extensions()[ending], **LOSSLESS.get(f"x{ending}", {}))
            written = mode
            break
        except (OSError, ValueError, KeyError, NotImplementedError):
            path.unlink(missing_ok=True)
    if written is None:
        assert Image.registered_extensions()[ending] not in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "TGA", "PPM")
        return
    (found,) = list_images(tmp_path).pictures
    image = read_image(found.path)
    assert image.shape[:2] == (found.height, found.width)
    with Image.open(path) as image_of_pillow:
        np.testing.assert_array_equal(image, np.asarray(image_of_pillow.convert("RGB")))


def test_another_programs_language_is_not_run_under_a_pictures_name(tmp_path):
    """Pillow would hand this to Ghostscript."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(OSError, match="cannot identify"):
        inspect_image(tmp_path / "x.png")


def test_what_is_left_out_is_counted_by_ending(tmp_path, capsys):
    Image.fromarray(LEVELS).save(tmp_path / "a.png")
    for name in ("x.heic", "y.HEIC", "z.mp4", "README"):
        (tmp_path / name).write_bytes(b"something")
    assert len(list_images(tmp_path).pictures) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "4 files left out, no pictures by ending: .heic 2, .mp4 1, without ending 1" in err


# --- several pictures in one file

SHADES = (0, 80, 160, 240)


def several(path):
    """A file of len(SHADES) pictures, each of one shade."""
    frames = [Image.new("RGB", (16, 12), (shade, shade, shade)) for shade in SHADES]
    if path.suffix == ".tif" and path.stem.startswith("deep"):
        tifffile.imwrite(path, np.stack([np.full((12, 16, 3), s * 257, np.uint16) for s in SHADES]), photometric="rgb")
    elif path.suffix == ".tif" and path.stem.startswith("stack"):
        tifffile.imwrite(path, np.stack([np.full((12, 16), s * 257, np.uint16) for s in SHADES]), imagej=True)
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:], **LOSSLESS.get(f"x{path.suffix}", {}))
    return path


FILES = ("x.tif", "deep.tif", "stack.tif", "x.gif", "x.png", "x.webp")


@pytest.mark.parametrize("name", FILES)
def test_pages_are_refused_by_name_or_taken_as_asked(tmp_path, name):
    path = several(tmp_path / name)
    for read in (inspect_image, read_image):
        with pytest.raises(SeveralPages, match=f"{name} holds 4 pages or frames"):
            read(path)
    with pytest.raises(
        UsageError, match=rf"{name} holds 4 pages.*: --pages all takes each .* --pages first only the first"
    ):
        list_images(tmp_path)
    first, pages = list_images(tmp_path, "first"), list_images(tmp_path, "all")
    assert [picture.page for picture in first.pictures] == [0]
    assert [picture.page for picture in pages.pictures] == [0, 1, 2, 3]
    for picture, shade in zip(pages.pictures, SHADES, strict=True):
        image = read_image(path, 3, picture.page)
        assert image.shape == (12, 16, 3) and np.abs(image - shade).max() <= 0.01
    with pytest.raises(ValueError, match="no page 5"):
        read_image(path, 3, 4)


def test_pages_are_pictures_of_a_data_set(tmp_path):
    for name in ("trainA", "trainB"):
        (tmp_path / name).mkdir()
        several(tmp_path / name / "x.tif")
    options = {"load_size": 8, "crop_size": 8, "flip": False}
    data = open_dataset("unaligned", (str(tmp_path),), options=ImageOptions(**options, pages="all"))
    assert len(data) == 4
    shades = sorted(round((data.item(number)[0].mean().item() + 1) * 127.5) for number in range(4))
    assert shades == sorted(SHADES)
    two = [str(tmp_path / name) for name in ("trainA", "trainB")]
    pairs = open_dataset("aligned", two, options=ImageOptions(**options, pages="all"))
    assert len(pairs) == 4 and all((a == b).all() for a, b in map(pairs.item, range(4)))
    Image.new("RGB", (16, 12)).save(tmp_path / "trainB/x.tif")
    with pytest.raises(UsageError, match="hold 4 and 1 pages"):
        open_dataset("aligned", two, options=ImageOptions(**options, pages="all"))
    for wrong in ("each", "1"):
        with pytest.raises(UsageError, match=f"pages must be one of refuse, first, all; got {wrong}"):
            ImageOptions(pages=wrong)
    assert Config().pages == "refuse"


def test_what_is_no_page_of_its_own(tmp_path):
    """The thumbnail and the mask of a TIFF, the layers of a PSD's like, the preview that a telephone adds."""
    small = noise(6, 8, 3)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(LEVELS, photometric="rgb", metadata=None)
        file.write(small, photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), LEVELS)
    deep = LEVELS.astype(np.uint16) * 257
    with tifffile.TiffWriter(tmp_path / "d.tif") as file:
        file.write(deep, photometric="rgb", metadata=None)
        file.write(small.astype(np.uint16), photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "d.tif"), LEVELS)
    preview = Image.fromarray(LEVELS).resize((24, 16))
    Image.fromarray(LEVELS).save(tmp_path / "p.mpo", save_all=True, append_images=[preview])
    (tmp_path / "p.mpo").rename(tmp_path / "p.jpg")
    assert inspect_image(tmp_path / "p.jpg")[1:4] == (48, 32, "RGB")
    assert read_image(tmp_path / "p.jpg").shape == (32, 48, 3)
    whole = Image.fromarray(LEVELS)
    whole.save(tmp_path / "stereo.mpo", save_all=True, append_images=[whole])
    with pytest.raises(SeveralPages, match="holds 2 pages"):
        inspect_image(tmp_path / "stereo.mpo")


def test_a_preview_is_not_taken_for_its_photograph(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(noise(4, 6, 3), photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        file.write(LEVELS, photometric="rgb", metadata=None)
    for read in (inspect_image, read_image):
        with pytest.raises(ValueError, match="only the preview would be read"):
            read(tmp_path / "x.tif")
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(LEVELS, photometric="rgb", subifds=1, metadata=None)
        file.write(LEVELS[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "pyramid.tif"), LEVELS)


def test_pages_of_several_kinds(tmp_path):
    """The second is nothing that Pillow knows."""
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(LEVELS, photometric="rgb", metadata=None)
        file.write(noise(8, 8, 5), photometric="minisblack", planarconfig="contig", metadata=None)
        file.write(noise(9, 7, 3, dtype=np.uint16), photometric="rgb", metadata=None)
    found = list_images(tmp_path, "all").pictures
    assert [picture[1:] for picture in found] == [(48, 32, "RGB", 0), (8, 8, "?????", 1), (7, 9, "RGB", 2)]
    with pytest.raises(UsageError, match="3 channels asked for, but it has 5"):
        read_image(tmp_path / "x.tif", 3, 1)
    deep = read_image(tmp_path / "x.tif", 3, 2).astype(np.float64) * 257
    np.testing.assert_allclose(deep, noise(9, 7, 3, dtype=np.uint16), atol=0.01)


def test_many_pages_are_found_by_opening_the_file_a_few_times(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((200, 8, 8), np.uint8))
    opened, opening = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **kw: opened.append(0) or opening(*args, **kw))
    assert len(list_images(tmp_path, "all").pictures) == 200
    assert len(opened) < 5


@pytest.mark.parametrize("kw", [{"truncate": True}, {"volumetric": True, "tile": (4, 16, 16)}], ids=str)
def test_planes_behind_one_page_are_refused(tmp_path, kw):
    """A stack that says so only in words, or by its depth."""
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(noise(4, 16, 16), photometric="minisblack", **kw)
    for page in (None, 0):
        with pytest.raises(ValueError, match="a stack of 4 planes behind one page"):
            read_image(tmp_path / "x.tif", 1, page)


# --- what Pillow would cut or leave as it is


def test_deep_colours_that_pillow_cuts_to_8_bits_are_refused(tmp_path):
    deep = noise(16, 16, 3, dtype=np.uint16)
    files = {
        "x.jp2": imagecodecs.jpeg2k_encode(deep, level=0, codecformat="jp2", reversible=True),
        "x.j2k": imagecodecs.jpeg2k_encode(deep, level=0, codecformat="j2k", reversible=True),
        "x.sgi": b"\x01\xda\0\2\0\3\0\x10\0\x10\0\3" + bytes(500) + deep.tobytes(),
    }
    if ".avif" in EXTENSIONS:
        files["x.avif"] = imagecodecs.avif_encode(deep >> 6, bitspersample=10)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with Image.open(tmp_path / name) as image:
            assert image.mode == "RGB"  # which holds 8
        for read in (inspect_image, read_image):
            with pytest.raises(ValueError, match="of more than 8 bits, which would be cut to 8"):
                read(tmp_path / name)
    grey = deep[..., 0]
    (tmp_path / "g.jp2").write_bytes(imagecodecs.jpeg2k_encode(grey, level=0, codecformat="jp2", reversible=True))
    np.testing.assert_allclose(read_image(tmp_path / "g.jp2", 1)[..., 0] * 257, grey, atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_tiff_whose_0_is_white(tmp_path, dtype):
    levels = noise(6, 9, dtype=dtype)
    tifffile.imwrite(tmp_path / "x.tif", np.iinfo(dtype).max - levels, photometric="miniswhite")
    scale = 1 if dtype == np.uint8 else 257
    np.testing.assert_allclose(read_image(tmp_path / "x.tif", 1)[..., 0] * float(scale), levels, atol=0.01)


def test_grey_tiff_of_12_bits_fills_the_range(tmp_path):
    """Two levels in three bytes; tifffile does not write it, Pillow reads it as 0 .. 4095."""
    levels = np.array([[0, 4095, 2048, 1], [4095, 0, 16, 255]])
    packed = bytearray()
    for a, b in levels.reshape(-1, 2).tolist():
        packed += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    tags = [(256, 4), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, len(packed))]
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in sorted(tags)
    )
    start = 8 + len(packed)
    header = b"II*\0" + start.to_bytes(4, "little")
    write_atomically(
        tmp_path / "x.tif", header + bytes(packed) + len(tags).to_bytes(2, "little") + entries + b"\0\0\0\0"
    )
    np.testing.assert_allclose(read_image(tmp_path / "x.tif", 1)[..., 0], levels * (255 / 4095), atol=1e-4)


def test_size_has_no_limit_but_memory(tmp_path, monkeypatch):
    """What Pillow takes for an attack at 180 million pixels, and warns of at 90, is what tiles are for. The limit of
    everything else in the process stays as it is."""
    Image.fromarray(LEVELS).save(tmp_path / "x.png")
    for limit in (LEVELS.size // 8, LEVELS.size // 4):  # an error, a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert inspect_image(tmp_path / "x.png").width == 48
            np.testing.assert_array_equal(read_image(tmp_path / "x.png"), LEVELS)
        assert Image.MAX_IMAGE_PIXELS == limit
    header = (tmp_path / "x.png").read_bytes()
    claim = header[:16] + (1 << 30).to_bytes(4, "big") * 2 + header[24:]
    (tmp_path / "x.png").write_bytes(claim[:29] + zlib.crc32(claim[12:29]).to_bytes(4, "big") + claim[33:])
    with pytest.raises(ValueError, match="1073741824 x 1073741824 pixels, more than the .* GB of memory"):
        inspect_image(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.webp", "x.avif", "x.jpg", "x.tif", "x.png"])
def test_upright_in_every_format(tmp_path, name):
    if name[1:] not in EXTENSIONS:
        assert name == "x.avif"  # of which Pillow is not always built
        return
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is seen at the right
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:4] = 255
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, **LOSSLESS.get(name, {}))
    assert inspect_image(tmp_path / name)[1:3] == (8, 16)
    image = read_image(tmp_path / name)
    assert image.shape == (16, 8, 3) and image[:, 4:].min() > 200 and image[:, :4].max() < 50


def test_long_folders_say_how_far_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("i2i.data.folders.PATIENCE", 0.0)
    for name in "abc":
        Image.fromarray(LEVELS).save(tmp_path / f"{name}.png")
    list_images(tmp_path)
    assert "opened 2 of 3 images" in capsys.readouterr().err
