"""Scores of translated images. torch-fidelity and its weights are not here: what it is given, and what is said when it
or they are missing, is tested with a stand-in."""

import argparse
import json
import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from i2i.cli.evaluate import add_arguments, run
from i2i.errors import UsageError
from i2i.inference.metrics import WEIGHTS, ssim


def folder(path, count, size=(16, 12), seed=0):
    """Random images, and their pixels."""
    path.mkdir()
    rng = np.random.default_rng(seed)
    images = [rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8) for _ in range(count)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i}.png")
    return images


def evaluate(tmp_path, *extra):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--real", tmp_path / "real", "--fake", tmp_path / "fake", "--device", "cpu", *extra]
    return run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def fidelity(monkeypatch):
    """A torch_fidelity that keeps what it is given and measures the difference between mean pixels."""
    given = {}

    def calculate_metrics(**options):
        given.update(options)
        means = [
            torch.stack([data[i].double().mean() for i in range(len(data))]).mean()
            for data in (options["input1"], options["input2"])
        ]
        found = {}
        if options["fid"]:
            found["frechet_inception_distance"] = float(means[0] - means[1])
        if options["kid"]:
            found |= {"kernel_inception_distance_mean": 0.25, "kernel_inception_distance_std": 0.125}
        return found

    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(calculate_metrics=calculate_metrics))
    return given


def test_distances_between_folders(tmp_path, capsys, fidelity):
    real, fake = folder(tmp_path / "real", 3), folder(tmp_path / "fake", 2, seed=1)
    weights = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, weights)
    assert evaluate(tmp_path, "--inception", weights, "--output", tmp_path / "out/scores.json") == 0
    assert fidelity["feature_extractor_weights_path"] == str(weights)
    assert fidelity["kid_subset_size"] == 2 and not fidelity["cuda"] and not fidelity["cache"]
    assert torch.equal(fidelity["input1"][1], torch.from_numpy(fake[1]).permute(2, 0, 1))
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["fid"] == pytest.approx(np.mean(fake) - np.mean(real), rel=1e-12)
    assert (scores["kid"], scores["kid_std"]) == (0.25, 0.125)
    assert (scores["real_images"], scores["fake_images"]) == (3, 2)
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "2 translated images, 3 real ones",
        f"FID   {scores['fid']:.2f}",
        "KID   0.25000 (standard deviation over subsets: 0.12500)",
    ]
    assert "fewer than 2048 images" in output.err


@pytest.mark.parametrize(("size", "wanted"), [((16, 12), 32), ((20, 12), 1)])
def test_images_of_several_sizes_go_one_by_one(tmp_path, fidelity, size, wanted):
    folder(tmp_path / "real", 2)
    folder(tmp_path / "fake", 2, size)
    assert evaluate(tmp_path, "--metrics", "kid") == 0
    assert fidelity["batch_size"] == wanted and fidelity["kid"] and not fidelity["fid"]
    assert fidelity["feature_extractor_weights_path"] is None


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    folder(tmp_path / "real", 2), folder(tmp_path / "fake", 2)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError, match="pip install torch-fidelity"):
        evaluate(tmp_path)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(UsageError, match="pip install scikit-image"):
        evaluate(tmp_path, "--metrics", "ssim")


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    folder(tmp_path / "real", 2), folder(tmp_path / "fake", 2)

    def calculate_metrics(**_):
        raise URLError("no route to host")

    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(calculate_metrics=calculate_metrics))
    with pytest.raises(UsageError, match=f"no route to host.*{WEIGHTS}.*--inception"):
        evaluate(tmp_path)


def test_pairs(tmp_path, capsys):
    real, fake = folder(tmp_path / "real", 3), folder(tmp_path / "fake", 3, seed=1)
    assert evaluate(tmp_path, "--metrics", "psnr", "ssim", "--output", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(real, fake)]
    assert scores["psnr"] == pytest.approx(np.mean(10 * np.log10(65025 / np.array(errors))), rel=1e-12)
    options = dict(channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    wanted = np.mean([structural_similarity(a, b, **options) for a, b in zip(real, fake)])
    assert scores["ssim"] == pytest.approx(wanted, rel=1e-12)
    assert f"PSNR  {scores['psnr']:.2f} dB\nSSIM  {wanted:.4f}\n" in capsys.readouterr().out


def deep_folder(path, images):
    path.mkdir()
    for i, image in enumerate(images):
        tifffile.imwrite(path / f"{i}.tif", image, photometric="rgb")


@pytest.mark.parametrize("step", [1, 16])
def test_16_bits_are_compared_in_16(tmp_path, step):
    """A difference of `step` levels of 65535: nothing is left of it in 8 bits."""
    rng = np.random.default_rng(0)
    real = [rng.integers(64, 65000, (12, 16, 3), dtype=np.uint16) // 257 * 257 for _ in range(2)]
    deep_folder(tmp_path / "real", real)
    deep_folder(tmp_path / "fake", [image + np.uint16(step) for image in real])
    assert evaluate(tmp_path, "--metrics", "psnr", "ssim", "--output", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["psnr"] == pytest.approx(20 * np.log10(65535 / step), rel=1e-12)
    options = dict(channel_axis=-1, data_range=65535, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    wanted = [structural_similarity(a.astype(float), a.astype(float) + step, **options) for a in real]
    assert scores["ssim"] == pytest.approx(np.mean(wanted), rel=1e-12) and scores["ssim"] < 1


def test_equal_pairs_do_not_make_the_mean_infinite(tmp_path, capsys):
    real = folder(tmp_path / "real", 3)
    folder(tmp_path / "fake", 3)
    Image.fromarray(real[1] ^ np.uint8(1)).save(tmp_path / "fake/1.png")
    assert evaluate(tmp_path, "--metrics", "psnr", "--output", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["psnr"] == pytest.approx(20 * np.log10(255), rel=1e-12) and scores["psnr_equal_pairs"] == 2
    assert "PSNR  48.13 dB (without 2 equal pairs, of infinite PSNR)\n" in capsys.readouterr().out


def test_all_sizes_are_looked_at_before_anything_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("i2i.inference.metrics.read_or_refuse", lambda *_: pytest.fail("read a picture"))
    folder(tmp_path / "real", 2), folder(tmp_path / "fake", 2)
    for real, fake, message in (
        ((10, 12), (10, 12), "1.png: ssim needs at least 11 pixels each way, got 10 x 12"),
        ((17, 12), (16, 12), "1.png is 16 x 12, but"),
    ):
        Image.new("RGB", real).save(tmp_path / "real/1.png")
        Image.new("RGB", fake).save(tmp_path / "fake/1.png")
        with pytest.raises(UsageError, match=message):
            evaluate(tmp_path, "--metrics", "psnr", "ssim")


def test_pages_in_pairs(tmp_path):
    for side, shift in (("real", 0), ("fake", 51)):
        (tmp_path / side).mkdir()
        pages = [Image.new("RGB", (16, 12), (shade + shift,) * 3) for shade in (0, 100)]
        pages[0].save(tmp_path / side / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UsageError, match="x.tif holds 2 pages"):
        evaluate(tmp_path, "--metrics", "psnr")
    assert evaluate(tmp_path, "--metrics", "psnr", "--pages", "all", "--output", tmp_path / "s.json") == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["psnr"] == pytest.approx(20 * np.log10(5), rel=1e-12) and scores["real_images"] == 2


def test_equal_folders_have_no_psnr_in_json(tmp_path):
    folder(tmp_path / "real", 2), folder(tmp_path / "fake", 2)
    assert evaluate(tmp_path, "--metrics", "psnr", "--output", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["psnr"] is None and scores["psnr_equal_pairs"] == 2


def test_folders_that_do_not_fit(tmp_path, fidelity):
    folder(tmp_path / "real", 2), folder(tmp_path / "fake", 1, (8, 8))
    with pytest.raises(UsageError, match="1.png has no partner in"):
        evaluate(tmp_path, "--metrics", "psnr")
    with pytest.raises(UsageError, match="at least 2 images on each side, got 2 and 1"):
        evaluate(tmp_path)
    (tmp_path / "real/1.png").unlink()
    with pytest.raises(UsageError, match="0.png is 8 x 8, but .*0.png is 16 x 12"):
        evaluate(tmp_path, "--metrics", "psnr")
    small = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="at least 11 pixels, got 8 x 8"):
        ssim(small, small)


def test_a_file_that_breaks_off(tmp_path):
    folder(tmp_path / "real", 1), folder(tmp_path / "fake", 1)
    whole = (tmp_path / "fake/0.png").read_bytes()
    (tmp_path / "fake/0.png").write_bytes(whole[:200])  # the header is there
    with pytest.raises(UsageError, match="0.png: cannot be read"):
        evaluate(tmp_path, "--metrics", "psnr")
