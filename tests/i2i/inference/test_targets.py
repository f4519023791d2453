"""`i2i translate` and `i2i export` with networks that have a choice of styles or labels."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from support import golden

import i2i
from i2i.cli import export, translate
from i2i.data.images import read_image, to_tensor
from i2i.errors import UsageError
from i2i.files import CHECKPOINT
from i2i.inference import tiles
from i2i.inference.export import portable
from i2i.inference.targets import Choice
from i2i.inference.weights import save_published
from i2i.methods.matchgan import MatchGAN, MatchGANConfig
from i2i.methods.stargan import StarGAN, StarGANConfig
from i2i.networks.munit import MunitGenerator, MunitTranslator, sample_styles
from i2i.networks.stargan import LabelledTranslator, MatchGANGenerator, StarGANGenerator
from i2i.training import checkpoint
from i2i.training.schedule import Schedule


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    a, b = (MunitGenerator(dim=4, n_res=1, mlp_dim=8) for _ in range(2))
    torch.save({"a": a.state_dict(), "b": b.state_dict()}, tmp_path / "gen.pt")
    save_published(tmp_path, "latest", {"gen_a": a})
    (tmp_path / "in").mkdir()
    for name, side in {"in/one": 24, "in/two": 24, "style": 20}.items():
        pixels = np.random.default_rng(side).integers(256, size=(side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path, MunitTranslator(a, b)


def run(folder, *words, weights="gen.pt"):
    parser = argparse.ArgumentParser()
    translate.add_arguments(parser)
    given = ["--weights", folder / weights, "--input", folder / "in", "--output", folder / "out", *words]
    return translate.run(parser.parse_args([str(word) for word in given]))


def levels(image):
    return ((image.clamp(-1, 1) + 1) * 127.5).round()


@torch.no_grad()
def test_sampled_styles_of_every_image(files):
    folder, net = files
    assert run(folder, "--num-styles", 3, "--seed", 5, "--batch-size", 2) == 0
    image = to_tensor(read_image(folder / "in" / "one.png"))[None]
    wanted = net.in_style(sample_styles(3, 8, seed=5))(image)
    for number, result in enumerate(wanted, 1):
        found = to_tensor(read_image(folder / "out" / "one" / f"style_{number}.png"))
        assert (levels(found) - levels(result)).abs().max() <= 1  # a half may round either way
    assert float((wanted[0] - wanted[1]).abs().max()) > 0.03  # 4 levels
    made = sorted(str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.png"))
    assert made == [
        f"{name}/{file}.png" for name in ("one", "two") for file in ("style_1", "style_2", "style_3", "styles")
    ]
    with Image.open(folder / "out" / "one" / "styles.png") as grid:
        assert grid.width > 4 * grid.height / 2  # the image and three translations in a row


@torch.no_grad()
def test_style_of_an_image(files):
    folder, net = files
    assert run(folder, "--style", folder / "style.png") == 0
    image, example = (to_tensor(read_image(folder / name))[None] for name in ("in/two.png", "style.png"))
    wanted = net.in_style(net.target.encode_style(example))(image)[0]
    found = to_tensor(read_image(folder / "out" / "two.png"))
    assert (levels(found) - levels(wanted)).abs().max() <= 1


@pytest.mark.parametrize(
    ("words", "weights", "message"),
    [
        (
            ["--style", "style.png", "--num-styles", 2],
            "gen.pt",
            "--style is one style, so --num-styles must be left out",
        ),
        (["--num-styles", 0], "gen.pt", "--num-styles must be at least 1, got 0"),
        (["--num-styles", 1, "--seed", 2**70], "gen.pt", r"--seed must be from 0 to 2\*\*63 - 1"),
        (["--style", "nowhere.png"], "gen.pt", "--style nowhere.png: "),
        (
            ["--num-styles", 2],
            "latest_net_gen_a.pth",
            "for MUNIT's translators; this is a MUNIT generator of one domain",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(files, words, weights, message):
    with pytest.raises(UsageError, match=message):
        run(files[0], *words, weights=weights)


def test_a_style_of_too_few_pixels_is_refused(files):
    """The style encoder halves an image four times, with reflection padding before each."""
    folder, net = files
    for side in (1, 8, 15):
        Image.new("RGB", (side, 40)).save(folder / "small.png")
        with pytest.raises(UsageError, match=f"--style .*must be at least 16 x 16 pixels, got {side} x 40$"):
            run(folder, "--style", folder / "small.png")
    with pytest.raises(UsageError, match="at least 16 x 16 pixels, got 8 x 8 with --load-size"):
        run(folder, "--style", folder / "style.png", "--load-size", 8)
    Image.new("RGB", (16, 16)).save(folder / "small.png")
    assert run(folder, "--style", folder / "small.png") == 0


NAMES = ("Dark", "Light", "Old")  # one of the first two at most


@pytest.fixture
def labelled(tmp_path):
    """A run's folder, the same generator as published, and two images."""
    options = {"crop_size": 16, "g_conv_dim": 4, "d_conv_dim": 4, "g_repeat_num": 1, "d_repeat_num": 3}
    config = StarGANConfig(**options, selected_attrs=NAMES, exclusive=("Dark+Light",))
    model = StarGAN(config)
    golden.fill(model.G)
    checkpoint.save(tmp_path / CHECKPOINT, model, Schedule(model.optimizers, config), 1)
    save_published(tmp_path, "latest", {"G": model.G})
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        pixels = np.random.default_rng(len(name)).integers(256, size=(24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    return tmp_path, model.G.eval()


def results(folder):
    return sorted(str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.png"))


def assert_translated(folder, net, source, target, label):
    with torch.no_grad():
        wanted = net(to_tensor(read_image(folder / "in" / source))[None], torch.tensor([label], dtype=torch.float32))[0]
    found = to_tensor(read_image(folder / "out" / target))
    assert (levels(found) - levels(wanted)).abs().max() <= 1  # a half may round either way


@pytest.mark.parametrize(
    ("words", "weights", "label"),
    [
        (["--label", "Light,Old", "--batch-size", 2], CHECKPOINT, [0, 1, 1]),
        (["--label", "0,1,0"], CHECKPOINT, [0, 1, 0]),
        (["--label", "0,0,0", "--eval"], "", [0, 0, 0]),  # the folder of the run
        (["--label", "1,1,0"], "latest_net_G.pth", [1, 1, 0]),  # a published file does not say what makes sense
        (["--label", "label_3"], "latest_net_G.pth", [0, 0, 1]),
        (["--label", "Dark", "--tile", 8], CHECKPOINT, [1, 0, 0]),
    ],
)
def test_one_label_for_all_images(labelled, words, weights, label):
    folder, net = labelled
    assert run(folder, *words, weights=weights) == 0
    assert results(folder) == ["one.png", "two.png"]
    for name in ("one.png", "two.png"):
        assert_translated(folder, net, name, name, label)


@pytest.mark.parametrize(
    ("weights", "names"), [(CHECKPOINT, NAMES), ("latest_net_G.pth", ("label_1", "label_2", "label_3"))]
)
def test_without_a_label_each_attribute_alone(labelled, weights, names):
    folder, net = labelled
    assert run(folder, "--batch-size", 2, weights=weights) == 0
    assert results(folder) == sorted(f"{n}/{file}.png" for n in ("one", "two") for file in (*names, "labels"))
    for number, name in enumerate(names):
        assert_translated(folder, net, "one.png", f"one/{name}.png", [float(number == i) for i in range(3)])
    with Image.open(folder / "out" / "one" / "labels.png") as grid:
        assert grid.width > 4 * grid.height / 2  # the image and three translations in a row


def test_names_of_results_stay_in_their_folder(tmp_path):
    choice = Choice(torch.nn.Identity(), ("../../away", "a\\b"), "labels")
    assert choice.targets(tmp_path / "x.png") == [tmp_path / "x" / name for name in (".._.._away.png", "a_b.png")]


@pytest.mark.parametrize("kind", [StarGANGenerator, MatchGANGenerator])
@torch.no_grad()
def test_a_fixed_label_changes_nothing_else(kind):
    """In train mode, too, which `i2i translate` uses; float64, and running statistics that would show if used."""
    net = kind(conv_dim=4, c_dim=3, repeat_num=2)
    golden.fill(net)
    net.double().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x, eye = golden.image("x", (3, 3, 24, 20)).double(), torch.eye(3, dtype=torch.float64)
    for translator in (LabelledTranslator(net, eye[1:2]).train(), LabelledTranslator(net, eye[1:2]).eval()):
        assert translator.input_nc == 3
        torch.testing.assert_close(translator(x), net(x, eye[1:2].expand(3, -1)), atol=1e-12, rtol=0)
        assert torch.equal(translator(x), translator(x))
    several = LabelledTranslator(net, eye)(x[:1])
    torch.testing.assert_close(several, net(x[:1].expand(3, -1, -1, -1), eye), atol=1e-12, rtol=0)
    assert (several[0] - several[1]).abs().max() > 0.03
    assert type(net) is kind and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@torch.no_grad()
def test_tiles_with_a_label_are_the_whole():
    net = StarGANGenerator(conv_dim=4, c_dim=3, repeat_num=1)
    golden.fill(net)
    translator = LabelledTranslator(net.double(), torch.tensor([[0.0, 1, 1]]))
    x = golden.image("x", (1, 3, 40, 36)).double()
    torch.testing.assert_close(tiles.translate_tiled(translator, x, 16), translator(x), atol=1e-10, rtol=0)


def test_a_matchgan_checkpoint_knows_its_labels(tmp_path):
    sizes = {"crop_size": 16, "g_conv_dim": 4, "d_conv_dim": 4, "g_repeat_num": 2, "d_repeat_num": 3}
    config = MatchGANConfig(**sizes, selected_attrs=NAMES, exclusive=("Dark+Light",))
    model = MatchGAN(config)
    checkpoint.save(tmp_path / CHECKPOINT, model, Schedule(model.optimizers, config), 1)
    net = i2i.load(tmp_path)
    assert type(net) is MatchGANGenerator and net.labels.vectors == config.label_space().vectors
    assert net.recognised.endswith("3 channels, 3 labels (Dark, Light, Old)")


def export_words(folder, *words):
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    given = ["--weights", folder, "--onnx", folder / "g.onnx", *words]
    return export.run(parser.parse_args([str(word) for word in given]))


@torch.no_grad()
def test_export_with_a_label(labelled, monkeypatch):
    """Up to the ONNX file, which takes seconds and is written as those of other networks are."""
    folder, net = labelled
    given = []
    monkeypatch.setattr(export, "export_onnx", lambda network, *_: given.append(network) or 0.0)
    assert export_words(folder, "--label", "Old") == 0
    assert given[0].recognised.endswith("3 labels (Dark, Light, Old); label Old")
    x = golden.image("x", (2, 3, 24, 20))
    wanted = net(x, torch.tensor([[0.0, 0, 1]]).expand(2, -1))
    # PlainNorm would take running statistics for those of a norm in eval mode.
    torch.testing.assert_close(portable(given[0])(x), wanted, atol=1e-5, rtol=0)


def test_export_needs_a_label(labelled):
    with pytest.raises(UsageError, match="--label is needed: this is a StarGAN generator.*Dark, Light, Old"):
        export_words(labelled[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--label", "Odl"],
            r"among Dark, Light, Old, or a 0 or 1 for each of these 3, got Odl \(did you mean Old\?\)",
        ),
        (["--label", "Dark,Light"], "label must have at most one of Dark, Light, got Dark,Light"),
        (["--tile", 8], "--tile translates to one label at a time, so --label must name it"),
        (["--num-styles", 2], "for MUNIT's translators; this is a StarGAN generator"),
        (["--style", "style.png"], "for MUNIT's translators; this is a StarGAN generator"),
        (["--style", "style.png", "--label", "Old"], "leave one out"),
        (
            ["--network", "D", "--label", "Old"],
            "for generators of StarGAN and MatchGAN; this is a StarGAN discriminator",
        ),
    ],
)
def test_labels_that_make_no_sense_are_refused(labelled, words, message):
    with pytest.raises(UsageError, match=message):
        run(labelled[0], *words, weights=CHECKPOINT)
    assert not (labelled[0] / "out").exists()


def test_a_label_is_not_for_munit(files):
    with pytest.raises(UsageError, match="--label is for generators of StarGAN and MatchGAN; this is a MUNIT tr"):
        run(files[0], "--label", "Old")
