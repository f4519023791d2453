"""Images from folders and the sample photographs: what is read, what is skipped, and that a number means a pair."""

import numpy as np
import pytest
import torch
from PIL import Image

from i2i import samples
from i2i.data import UnpairedFolders, batches, find_folders, list_images, read_rgb, to_tensor
from i2i.errors import UsageError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Three images of A and two of B, of several sizes, one smaller than any crop."""
    for name, sizes in {"trainA": [(40, 50), (9, 7), (64, 33)], "trainB": [(50, 50), (31, 80)]}.items():
        (tmp_path / name).mkdir()
        for i, size in enumerate(sizes):
            Image.fromarray(noise(*size, seed=i)).save(tmp_path / name / f"{i}.{'jpg' if i else 'png'}")
    return tmp_path / "trainA", tmp_path / "trainB"


def unpaired(folders, **kw):
    return UnpairedFolders(*folders, **{"load_size": 40, "crop_size": 32, "flip": True, "seed": 0} | kw)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "RGB"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = Image.fromarray(np.repeat(np.linspace(0, 255, 16, dtype=np.uint8)[None], 8, 0))
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    grey.convert("RGB").convert(mode).save(path)
    image = read_rgb(path)
    assert image.mode == "RGB" and image.size == (16, 8)
    if mode != "1":  # dithered
        np.testing.assert_allclose(np.asarray(image)[0, :, 1], np.linspace(0, 255, 16), atol=30 if mode == "P" else 2)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_keeps_its_range(tmp_path, extension):
    """Pillow's own conversion would clip everything above 255 to white."""
    levels = np.linspace(0, 65535, 16).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(levels).save(tmp_path / f"x.{extension}")
    np.testing.assert_allclose(
        np.asarray(read_rgb(tmp_path / f"x.{extension}"))[0, :, 0], np.linspace(0, 255, 16), atol=1
    )


def test_a_photograph_taken_sideways_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter
    Image.fromarray(noise(10, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert read_rgb(tmp_path / "x.jpg").size == (10, 20)


def test_values_are_in_minus_one_to_one():
    x = to_tensor(Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8)))
    assert x.shape == (3, 1, 1) and x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_crops_have_one_size_whatever_the_images(folders):
    data = unpaired(folders)
    assert len(data) == 3
    for number in range(6):
        for image in data.pair(number):
            assert image.shape == (3, 32, 32) and image.min() >= -1 and image.max() <= 1


def test_crop_is_bicubic_resize_then_window(folders):
    """One image on each side, no flip: every crop is some window of the image resized to 40 x 40."""
    for folder in folders:
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    resized = to_tensor(read_rgb(folders[0] / "0.png").resize((40, 40), Image.Resampling.BICUBIC))
    data = unpaired(folders, flip=False)
    windows = [resized[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    found = {next(i for i, w in enumerate(windows) if torch.equal(w, data.pair(n)[0])) for n in range(12)}
    assert len(found) > 4
    flipped = unpaired(folders)
    mirrors = sum(any(torch.equal(w.flip(2), flipped.pair(n)[0]) for w in windows) for n in range(20))
    assert 3 <= mirrors <= 17


def test_full_view_while_the_rate_falls(folders):
    data = unpaired(folders, flip=False, full_view_from=3)
    whole = {
        path.name: to_tensor(read_rgb(path).resize((32, 32), Image.Resampling.BICUBIC)) for path in folders[0].iterdir()
    }
    for number in range(3, 6):
        assert any(torch.equal(data.pair(number)[0], image) for image in whole.values())


def test_a_pass_shows_every_image_of_the_larger_folder(folders):
    data = unpaired(folders, load_size=32, flip=False)
    first = {data.pair(n)[0].sum().item() for n in range(3)}
    assert len(first) == 3 and first == {data.pair(n)[0].sum().item() for n in range(3, 6)}


def test_pairs_depend_on_seed_and_number_only(folders):
    a, b = unpaired(folders), unpaired(folders)
    for number in (5, 0, 3):
        assert all(torch.equal(x, y) for x, y in zip(a.pair(number), b.pair(number), strict=True))
    other = unpaired(folders, seed=1)
    assert not all(torch.equal(a.pair(n)[0], other.pair(n)[0]) for n in range(4))


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_come_in_order(folders, threads):
    data = unpaired(folders)
    got = list(batches(data, 2, first=3, last=9, threads=threads))
    assert len(got) == 6
    for step, (a, b) in zip(range(3, 9), got, strict=True):
        for i in range(2):
            want_a, want_b = data.pair(2 * step + i)
            assert torch.equal(a[i], want_a) and torch.equal(b[i], want_b)


def test_unreadable_image_is_named_counted_and_left_out(folders, capsys):
    (folders[0] / "broken.png").write_bytes(b"no picture")
    assert [p.name for p in list_images(folders[0])] == ["0.png", "1.jpg", "2.jpg"]
    err = capsys.readouterr().err
    assert "broken.png" in err and "1 of 4 images skipped" in err


def test_image_that_breaks_off_is_named_and_replaced(folders, capsys):
    """A good header and half of the rest: found out only when its turn comes."""
    path = folders[0] / "0.png"
    path.write_bytes(path.read_bytes()[:2000])
    data = unpaired(folders)
    for number in range(6):
        data.pair(number)
    assert data.skipped == {path}
    assert capsys.readouterr().err.count("0.png") == 1


def test_folders_that_cannot_be_used(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images in it"):
        list_images(tmp_path / "empty")
    (tmp_path / "empty" / "x.png").write_bytes(b"")
    with pytest.raises(UsageError, match="none of its 1 images can be read"):
        list_images(tmp_path / "empty")
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        find_folders((str(tmp_path / "nowhere"),))
    with pytest.raises(UsageError, match="has no folder trainA"):
        find_folders((str(tmp_path / "empty"),))
    assert find_folders((str(tmp_path),)) == folders
    assert find_folders(("x", "y")) == tuple(map(type(tmp_path), ("x", "y")))


def test_sample_photographs_load_without_network(monkeypatch):
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    data = samples.SamplePhotographs(64, True, 0)
    a, b = data.pair(7)
    assert a.shape == b.shape == (3, 64, 64)
    assert all(torch.equal(x, y) for x, y in zip(data.pair(7), (a, b), strict=True))
    for picture, truth in zip(data.test_a, data.test_truth, strict=True):
        assert picture.shape == truth.shape and picture.shape[1] % 4 == picture.shape[2] % 4 == 0
        assert torch.equal(truth, samples.stylise(picture))


def test_held_out_parts_are_never_shown():
    """The held-out columns start where the training part ends."""
    data = samples.SamplePhotographs(64, True, 0)
    for name, train, test in zip(samples.A, data.train_a, data.test_a, strict=True):
        assert torch.equal(torch.cat([train, test], 2), samples.photograph(name))
    assert not set(samples.A) & set(samples.B)


def test_stylise_is_monotone_in_luminance_and_ends_on_its_stops():
    ramp = torch.linspace(-1, 1, 65).expand(3, 1, 65)
    styled = samples.stylise(ramp)
    assert (styled.diff(dim=2) >= 0).all()
    for place, stop in zip((0, 32, 64), samples.STOPS, strict=True):
        torch.testing.assert_close((styled[:, 0, place] + 1) * 127.5, torch.tensor(stop).float(), atol=1e-3, rtol=0)
