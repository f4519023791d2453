"""Translation of images of any size, and of files."""

import argparse
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import golden
from torch import nn

from i2i.cli.translate import add_arguments, run
from i2i.data.images import read_image
from i2i.errors import UsageError
from i2i.inference import translate_files, weights
from i2i.inference.outputs import find_jobs
from i2i.inference.translate import prepare, size_multiple, translate
from i2i.inference.translate_files import encode_png
from i2i.networks import ResnetGenerator, UnetGenerator, init_weights
from i2i.networks.discogan import DiscoGANDiscriminator


def small(**options):
    torch.manual_seed(0)
    return init_weights(ResnetGenerator(**{"ngf": 4, "n_blocks": 1} | options), gain=1.0)


def picture(path, size=(24, 20), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], len(Image.new(mode, (1, 1)).getbands()))
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return pixels


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        (small(), 4),
        (small(antialias_down=False, antialias_up=False), 4),
        (UnetGenerator(ngf=2, num_downs=5), 32),
        (UnetGenerator(ngf=2, num_downs=7, norm="batch"), 128),
        (nn.Conv2d(3, 3, 3, padding=1), 1),
    ],
)
def test_size_multiple(net, wanted):
    assert size_multiple(net) == wanted


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Conv2d(3, 3, 3), "Conv2d does not translate.*it changes their size"),
        (nn.Bilinear(3, 3, 3), "Bilinear takes no images"),
        (nn.ConvTranspose2d(3, 3, 1, stride=2), "changes their size"),
        (DiscoGANDiscriminator(conv_dim=2), "DiscoGANDiscriminator does not translate.*it gives no image"),
    ],
)
def test_a_network_that_does_not_translate_is_refused(net, message):
    with pytest.raises(UsageError, match=message):
        size_multiple(net)


@pytest.mark.parametrize("size", [(64, 64), (61, 50), (3, 40), (2, 9)])
@torch.no_grad()
def test_any_size_is_extended_by_reflection_and_cut_back(size):
    net = small().double()
    x = golden.wave((2, 3, *size))
    got = translate(net, x)
    assert got.shape == x.shape and got.dtype == torch.float32
    # by hand, in NumPy: edge where there are too few pixels to reflect
    sides = [max(8, -(-side // 4) * 4) - side for side in size]
    mode = "reflect" if all(extra < side for extra, side in zip(sides, size)) else "edge"
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *((0, extra) for extra in sides)], mode=mode)
    wanted = net(torch.from_numpy(padded))[..., : size[0], : size[1]]
    torch.testing.assert_close(got, wanted.float(), atol=1e-6, rtol=0)


@torch.no_grad()
def test_in_tiles_image_by_image():
    net = small()
    x = golden.image("x", (2, 3, 45, 50))
    torch.testing.assert_close(translate(net, x, tile=16), translate(net, x), atol=2e-5, rtol=0)


def test_published_mode_and_evaluation_mode():
    batch, drop, plain = UnetGenerator(ngf=2, num_downs=5, norm="batch"), small(dropout=True), small()
    assert [prepare(net, False) for net in (batch, drop, plain)] == [True, True, False]
    assert batch.training and drop.training
    assert [prepare(net, True) for net in (batch, drop, plain)] == [False, False, False]
    assert not batch.training and not drop.training


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_round_trip(tmp_path, channels, bits):
    top = 2**bits - 1
    levels = np.random.default_rng(0).integers(top + 1, size=(5, 7, channels))
    levels[0, :2, 0] = 0, top
    image = torch.from_numpy(levels / top * 2 - 1).permute(2, 0, 1)
    path = tmp_path / "x.png"
    path.write_bytes(encode_png(image, bits))
    back = read_image(path, channels)
    assert np.array_equal(np.round(back.astype(np.float64) * (top / 255)), levels)
    assert encode_png(image * 1.5, bits) == encode_png((image * 1.5).clamp(-1, 1), bits)


def test_a_missing_encoder_of_16_bits_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(UsageError, match="--bits 16 needs imagecodecs: pip install imagecodecs"):
        command(tmp_path, small(), "--bits", 16)


def test_a_png_of_five_channels_is_refused():
    with pytest.raises(UsageError, match="1 to 4 channels.*has 5"):
        encode_png(torch.zeros(5, 2, 2), 8)


def test_jobs_keep_subfolders_and_leave_out_earlier_results(tmp_path):
    for name in ("b.png", "sub/a.JPG", "out/old.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    jobs = find_jobs([tmp_path], tmp_path / "out")
    assert [job.source for job in jobs] == [tmp_path / "b.png", tmp_path / "sub/a.JPG"]
    assert [job.target for job in jobs] == [tmp_path / "out/b.png", tmp_path / "out/sub/a.png"]


def test_jobs_of_a_list_and_of_single_files(tmp_path):
    for name in ("a.jpg", "sub/b.tif", "list.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("sub/b.tif\n")
    jobs = find_jobs([tmp_path / "a.jpg", tmp_path / "list.txt"], tmp_path / "out")
    assert [job.source for job in jobs] == [tmp_path / "a.jpg", tmp_path / "sub/b.tif"]
    assert [job.target for job in jobs] == [tmp_path / "out/a.png", tmp_path / "out/b.png"]


def test_jobs_that_cannot_be(tmp_path):
    for name in ("a/x.png", "a/x.jpg", "b/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="x.jpg and .*x.png would both become"):
        find_jobs([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(UsageError, match="y.png would replace one of the images"):
        find_jobs([tmp_path / "b"], tmp_path / "b")
    with pytest.raises(UsageError, match="empty: no images in it"):
        find_jobs([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UsageError, match="none.png: no such file"):
        find_jobs([tmp_path / "none.png"], tmp_path / "out")


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
