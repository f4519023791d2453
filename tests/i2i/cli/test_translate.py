"""`i2i translate`: files."""

import argparse
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.translators import small

import kernels
from i2i.cli.translate import add_arguments, run
from i2i.errors import UsageError
from i2i.inference import translate_files, weights
from i2i.inference.translate import translate
from i2i.networks import UnetGenerator


def picture(path, size=(24, 20), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], len(Image.new(mode, (1, 1)).getbands()))
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return pixels


def test_an_implementation_that_cannot_run_is_no_fault_of_the_network(tmp_path):
    picture(tmp_path / "in/0.png")
    with pytest.raises(kernels.BackendUnavailable, match="impl='cuda' cannot run"):
        command(tmp_path, small(), "--impl", "cuda")


def test_a_missing_encoder_of_16_bits_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(UsageError, match="--bits 16 needs imagecodecs: pip install imagecodecs"):
        command(tmp_path, small(), "--bits", 16)


def command(tmp_path, net, *extra):
    weights = tmp_path / "latest_net_G.pth"
    torch.save(net.state_dict(), weights)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--weights", weights, "--input", tmp_path / "in", "--output", tmp_path / "out", "--device", "cpu", *extra]
    return run(parser.parse_args([str(word) for word in words]))


def result(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_files_are_translated(tmp_path, capsys, batch_size):
    net = small()
    sizes = [(24, 20), (24, 20), (24, 20), (24, 20), (17, 9)]
    pixels = [picture(tmp_path / f"in/{i}.png", size, seed=i) for i, size in enumerate(sizes)]
    assert command(tmp_path, net, "--batch-size", batch_size) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{i}.png" for i in range(5)]
    for i, image in enumerate(pixels):
        x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        wanted = ((translate(net, x)[0].permute(1, 2, 0) + 1) * 127.5).round().int().numpy()
        # a level of difference where rounding within the network decides
        assert abs(result(tmp_path / f"out/{i}.png") - wanted).max() <= 1
    assert "5 of 5 images translated" in capsys.readouterr().err


def test_unreadable_files_are_named_and_do_not_stop_the_rest(tmp_path, capsys):
    for name in "ac":
        picture(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes(b"no picture")
    assert command(tmp_path, small(), "--batch-size", 2) == 1
    error = capsys.readouterr().err
    assert f"skipped: {tmp_path / 'in/b.png'}" in error and "2 of 3 images translated" in error
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


@pytest.mark.parametrize(("extra", "size"), [((), (32, 32)), (("--size", "original"), (24, 20))])
def test_load_size(tmp_path, extra, size):
    picture(tmp_path / "in/a.png")
    assert command(tmp_path, small(), "--load-size", 32, *extra) == 0
    assert Image.open(tmp_path / "out/a.png").size == size


def test_one_channel_of_16_bits(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    levels = np.random.default_rng(0).integers(65536, size=(16, 16)).astype(np.uint16)
    for name in "ab":
        Image.fromarray(levels).save(tmp_path / f"in/{name}.png")
    net = small(input_nc=1, output_nc=1)
    assert command(tmp_path, net) == 0
    assert capsys.readouterr().err.count("images of 16 bits become results of 8 bits; --bits 16") == 1
    assert command(tmp_path, net, "--bits", 16) == 0
    assert "16 bits" not in capsys.readouterr().err
    x = torch.from_numpy(levels / 32767.5 - 1).float()[None, None]
    wanted = (translate(net, x)[0, 0].double().numpy() + 1) * 32767.5
    assert abs(result(tmp_path / "out/a.png") - wanted).max() <= 2  # float32 through the network


def test_batch_norm_as_published_goes_one_by_one(tmp_path, capsys, monkeypatch):
    """Results do not depend on the other images; with --eval, images go in batches."""
    net = UnetGenerator(ngf=2, num_downs=5, norm="batch", dropout=True)
    net.recognised, net.found_in = "U-Net", "a file"  # as the loader leaves it
    monkeypatch.setattr(weights, "load", lambda *_, **__: net)
    for name in "ab":
        picture(tmp_path / f"in/{name}.png", (64, 64), seed=ord(name))
    sizes = []
    net.register_forward_hook(lambda _m, x, _y: sizes.append(len(x[0])))
    assert command(tmp_path, small(), "--batch-size", 2) == 0
    assert sizes[-2:] == [1, 1] and "one image at a time" in capsys.readouterr().err
    both = result(tmp_path / "out/b.png")
    (tmp_path / "in/a.png").unlink()
    assert command(tmp_path, small()) == 0
    assert np.array_equal(result(tmp_path / "out/b.png"), both)
    picture(tmp_path / "in/a.png", (64, 64))
    assert command(tmp_path, small(), "--batch-size", 2, "--eval") == 0
    assert sizes[-1] == 2
    assert not np.array_equal(result(tmp_path / "out/b.png"), both)


def test_interruption_keeps_what_is_written(tmp_path, capsys, monkeypatch):
    for i in range(3):
        picture(tmp_path / f"in/{i}.png")
    seen = []

    def interrupted(*args, **options):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return translate(*args, **options)

    monkeypatch.setattr(translate_files, "translate", interrupted)
    assert command(tmp_path, small()) == 130
    assert "interrupted: 1 of 3 images are in" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["0.png"]


def test_out_of_memory_says_what_to_do(tmp_path, monkeypatch):
    picture(tmp_path / "in/a.png")

    def too_large(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(translate_files, "translate", too_large)
    with pytest.raises(UsageError, match="a.png: 24 x 20 pixels, 1 at a time, are too large.*--tile"):
        command(tmp_path, small())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--tile", 0), "--tile must be at least 1, got 0"),
        (("--batch-size", 0), "--batch-size must be"),
        (("--load-size", 0), "--load-size must be"),
        (("--size", "original"), "no meaning without --load-size"),
        (("--device", "cuda:99"), "device cuda:99"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, extra, message):
    picture(tmp_path / "in/a.png")
    with pytest.raises(UsageError, match=message):
        command(tmp_path, small(), *extra)
    assert not (tmp_path / "out").exists()
