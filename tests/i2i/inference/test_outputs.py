"""Where results go: nothing is replaced that is not a result of the same, and no result is translated again."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_folders import tree

from i2i.__main__ import main
from i2i.cli import export
from i2i.cli import translate as command
from i2i.data.images import read_image
from i2i.errors import UsageError
from i2i.inference import outputs, translate_files
from i2i.inference.outputs import find_jobs, mark_of, marked
from i2i.inference.translate import translate
from i2i.inference.translate_files import encode_png
from i2i.networks import PixelDiscriminator, ResnetGenerator, UnetGenerator, init_weights
from i2i.networks.stargan import StarGANGenerator

ROOT = Path(__file__).parents[3]


def picture(path: Path, seed: int = 100, size=(16, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def resnet(seed: int) -> ResnetGenerator:
    torch.manual_seed(seed)
    return init_weights(ResnetGenerator(ngf=4, n_blocks=1), gain=1.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for seed, name in enumerate(("one", "two")):
        torch.save(resnet(seed).state_dict(), tmp_path / f"{name}.pth")
    for number in range(3):
        picture(tmp_path / f"in/{number}.png", 50 * number)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words, weights="one.pth", source="in", output="out") -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ["--weights", weights, "--input", source, "--output", output, "--device", "cpu", *words]
    return command.run(parser.parse_args([str(word) for word in given]))


def test_the_same_again_is_refreshed_and_nothing_else_is_replaced(folder):
    assert run() == 0
    first = tree(folder / "out")
    (folder / "out" / "1.png").unlink()
    picture(folder / "in" / "3.png", 200)
    torch.save(resnet(2).state_dict(), "one.pth")  # trained on
    assert run() == 0 and run("--bits", 16) == 0 and run(source=folder / "in", output=folder / "out") == 0
    again = tree(folder / "out")
    assert set(again) == {f"{number}.png" for number in range(4)} and again["0.png"] != first["0.png"]
    picture(folder / "more" / "0.png")
    before = tree(folder)
    for words in ({"weights": "two.pth"}, {"source": "more"}):
        with pytest.raises(UsageError, match=r"out/0.png is there already and is no earlier result of .*0.png with th"):
            run(**words)
    assert tree(folder) == before
    assert run(output="out-two", weights="two.pth") == 0


@pytest.mark.parametrize("there", ["picture", "text", "link to nowhere", "truncated"])
def test_files_of_others_stay(folder, there):
    (folder / "out").mkdir()
    place = folder / "out" / "1.png"
    if there == "picture":
        picture(place)
    elif there == "text":
        place.write_text("notes")
    elif there == "link to nowhere":
        place.symlink_to(folder / "nowhere")
    else:
        place.write_bytes(b"\x89PNG")
    before = tree(folder)
    with pytest.raises(UsageError, match=r"out/1.png is there already .*choose another --output, or move it away"):
        run()
    assert tree(folder) == before and os.path.lexists(place)


def test_a_mark_changes_no_pixel_and_is_found(tmp_path):
    image = torch.linspace(-1, 1, 3 * 4 * 5).view(3, 4, 5)
    for bits in (8, 16):
        png, path = encode_png(image, bits), tmp_path / f"{bits}.png"
        path.write_bytes(png)
        assert mark_of(path) is None
        pixels = np.asarray(Image.open(path))
        own = outputs.mark(path, "x")
        path.write_bytes(marked(png, own))
        assert mark_of(path) == own and len(own) == 32
        with Image.open(path) as found:
            assert np.array_equal(np.asarray(found), pixels) and found.text == {"i2i": own}
    assert mark_of(tmp_path / "none.png") is None


def spellings(folder: Path) -> list[tuple[Path, Path]]:
    """(input, output), the output inside the input, which is `folder`/in, in words that do not look like it."""
    (folder / "link").symlink_to(folder / "in")
    (folder / "in/results").mkdir()
    (folder / "to_results").symlink_to(folder / "in/results")
    return [
        (folder / "in", Path("in/results")),
        (Path("in"), folder / "in/results"),
        (Path("in"), Path("link/results")),
        (Path("link"), Path("in/results")),
        (Path("in/../in"), Path("in/results/../results")),
        (Path("."), Path("to_results")),
        (Path("in"), Path("to_results")),
    ]


def test_results_of_yesterday_are_not_translated_again(folder):
    for number, (source, output) in enumerate(spellings(folder)):
        picture(folder / "in/results/old.png", number)
        picture(folder / "in/results/deeper/old.png", number)
        names = {str(job.source.name) for job in find_jobs([source], output)}
        assert names == {"0.png", "1.png", "2.png"}, (source, output)


def test_links_to_results_are_results(folder):
    picture(folder / "out/old.png")
    (folder / "in/again.png").symlink_to(folder / "out/old.png")
    (folder / "in/all").symlink_to(folder / "out")
    assert [job.source.name for job in find_jobs([Path("in")], Path("out"))] == ["0.png", "1.png", "2.png"]
    # asked for by its name
    assert [job.source.name for job in find_jobs([Path("out")], Path("out/second"))] == ["old.png"]
    assert [job.source.name for job in find_jobs([Path("out/old.png")], Path("out/second"))] == ["old.png"]


def test_a_result_never_takes_the_place_of_an_image(folder):
    (folder / "link").symlink_to(folder / "in")
    for source, output in [
        ("in", "in"),
        ("in", "link"),
        ("link", folder / "in"),
        ("in/0.png", "in"),
        ("in", "in/../in"),
    ]:
        with pytest.raises(UsageError, match="0.png would replace one of the images"):
            find_jobs([Path(source)], Path(output))
    (folder / "hard").mkdir()
    os.link(folder / "in/2.png", folder / "hard/2.png")
    with pytest.raises(UsageError, match="hard/2.png would replace one of the images"):
        find_jobs([Path("in")], Path("hard"))


def test_two_images_of_one_name(folder, monkeypatch):
    picture(folder / "in/0.jpg")
    with pytest.raises(UsageError, match="0.jpg and in/0.png would both become out/0.png"):
        find_jobs([Path("in")], Path("out"))
    (folder / "in/0.jpg").unlink()
    picture(folder / "in/a.jpg")
    picture(folder / "in/A.png")
    picture(folder / "in/2.png/x.png") if not (folder / "in/2.png").exists() else None
    if not outputs.ignores_case(folder):
        assert len(find_jobs([Path("in")], Path("out"))) == 5
    monkeypatch.setattr(outputs, "ignores_case", lambda _: True)
    with pytest.raises(UsageError, match="in/A.png and in/a.jpg would both become out/a.png"):
        find_jobs([Path("in")], Path("out"))


def test_a_file_and_a_folder_of_one_name(folder):
    picture(folder / "in/x.png/y.jpg")
    picture(folder / "in/x.jpg")
    with pytest.raises(UsageError, match="in/x.jpg would become out/x.png, and in/x.png/y.jpg a file in it"):
        find_jobs([Path("in")], Path("out"))


def test_results_of_several_labels_collide_neither_with_each_other_nor_with_files(folder, monkeypatch):
    net = StarGANGenerator(conv_dim=4, c_dim=2, repeat_num=1)
    networks = {"G": net.state_dict()}

    def save(*names):
        config = {"selected_attrs": names, "exclusive": (), "label_kind": "attributes"}
        torch.save({"format": 2, "config": config, "networks": networks}, "star.pt")

    for names in (("a/b", "a_b"), ("labels", "x")):
        save(*names)
        with pytest.raises(UsageError, match="would both become out/0/"):
            run(weights="star.pt")
    save("Dark", "Old")
    (folder / "out/1").mkdir(parents=True)
    (folder / "out/1/labels.png").write_text("notes")
    with pytest.raises(UsageError, match="out/1/labels.png is there already"):
        run(weights="star.pt")
    (folder / "out/1/labels.png").unlink()
    assert run(weights="star.pt") == 0 and run(weights="star.pt") == 0
    assert len(tree(folder / "out")) == 9
    assert run("--label", "Old", weights="star.pt", output="old") == 0
    with pytest.raises(UsageError, match="old/0.png is there already"):
        run("--label", "Dark", weights="star.pt", output="old")


def test_where_results_cannot_go(folder, capsys):
    (folder / "file").write_text("notes")
    for output, sentence in [
        ("file", "file cannot be a folder to write into: file is a file"),
        ("file/deeper/out", "file/deeper/out cannot be a folder to write into: file is a file"),
        ("new.png", "--output new.png: must be a folder; results have the names of their images"),
    ]:
        words = ["translate", "--weights", "one.pth", "--input", "in", "--output", output, "--device", "cpu"]
        assert main(words) == 2
        assert capsys.readouterr().err == f"error: {sentence}\n"
    (folder / "out").mkdir()
    (folder / "out/sub").write_text("notes")
    picture(folder / "in/sub/x.png")
    with pytest.raises(UsageError, match="out/sub cannot be a folder to write into: out/sub is a file"):
        run()


FULL = """
import resource, sys
from i2i.__main__ import main
import i2i.cli.translate
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # bytes of a file: smaller than any result
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails, as on a full disk
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "KERNELS_IMPL": "reference"}
    words = ["translate", "--weights", "one.pth", "--input", "in", "--output", "out", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", FULL, *words], env=environment, capture_output=True, text=True)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "error: out/0.png: cannot be written (File too large)"
    assert tree(folder / "out") == {}


def export_words(*words) -> int:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    return export.run(parser.parse_args([str(word) for word in words]))


def test_an_export_replaces_nothing_but_itself(folder):
    words = ["--size", 16, 16, "--weights"]
    for path, sentence in [
        ("one.pth", "--onnx one.pth: is there already and is no earlier export of these weights"),  # the weights!
        ("in/0.png", "--onnx in/0.png: is there already"),
        ("in", "--onnx in: is a folder; name the file to write"),
        ("one.pth/g.onnx", "one.pth cannot be a folder to write into: one.pth is a file"),
    ]:
        before = tree(folder)
        with pytest.raises(UsageError, match=sentence):
            export_words(*words, "one.pth", "--onnx", path)
        assert tree(folder) == before
    assert export_words(*words, "one.pth", "--onnx", "g.onnx") == 0
    assert export_words(*words, folder / "one.pth", "--onnx", "g.onnx") == 0
    with pytest.raises(UsageError, match="--onnx g.onnx: is there already"):
        export_words(*words, "two.pth", "--onnx", "g.onnx")


def test_what_torch_refuses_is_told_with_the_picture_and_the_sizes(folder, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Kernel size can't be\ngreater than actual input size")

    monkeypatch.setattr(translate_files, "translate", refuse)
    sentence = (
        r"in/0.png: 16 x 12 pixels, 1 at a time, cannot be translated by this network, which takes sides that are "
        r"multiples of 4, at least 8 \(Kernel size can't be greater than actual input size\)"
    )
    with pytest.raises(UsageError, match=sentence):
        run()


def test_results_that_are_not_finite_are_no_pictures(folder, capsys):
    state = torch.load("one.pth")
    torch.save(state | {"model.1.weight": state["model.1.weight"] * 1e38}, "large.pth")
    assert run("--precision", "bfloat16", weights="large.pth") in (0, 1)
    real = translate
    seen = []

    def overflowing(network, images, **options):
        seen.append(1)
        return real(network, images, **options) * (torch.nan if len(seen) == 2 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translate_files, "translate", overflowing)
        assert run(output="other") == 1
    error = capsys.readouterr().err
    assert "skipped: in/1.png (the result is not finite" in error and "2 of 3 images translated into other" in error
    assert set(tree(folder / "other")) == {"0.png", "2.png"}


def test_numbers_replace_nothing_but_earlier_ones_of_the_same(folder, capsys):
    words = ["evaluate", "--real", "in", "--fake", "in", "--metrics", "psnr", "--device", "cpu", "--output"]
    assert main([*words, "n.json"]) == 0 and main([*words, "n.json"]) == 0
    (folder / "more").symlink_to("in")
    (folder / "list.json").write_text("[1]")
    capsys.readouterr()
    before = tree(folder)
    for path, sentence in [
        ("one.pth", "--output one.pth: is there already and holds no earlier numbers of in against in; choose another"),
        ("list.json", "--output list.json: is there already"),
        ("in", "--output in: is a folder; name the file to write"),
        ("one.pth/n.json", "one.pth cannot be a folder to write into"),
    ]:
        assert main([*words, path]) == 2
        assert capsys.readouterr().err.startswith(f"error: {sentence}")
    words[4] = "more"
    assert main([*words, "n.json"]) == 2 and tree(folder) == before


def test_sizes_beyond_the_memory_are_told(folder, capsys):
    words = ["--weights", "one.pth", "--device", "cpu", "--input", "in", "--output", "out"]
    assert main(["translate", *words, "--load-size", str(2**30)]) == 1
    assert capsys.readouterr().err.count("skipped: in/") == 3
    assert main(["export", "--weights", "one.pth", "--onnx", "g.onnx", "--size", str(2**24), str(2**24)]) == 2
    assert "error: --size: images of this size are too large for the memory" in capsys.readouterr().err
    assert not (folder / "out").exists() and not (folder / "g.onnx").exists()


def test_scores_of_a_discriminator_are_no_pictures(folder, capsys):
    """Those of a pixel discriminator have the size of the image."""
    torch.save(PixelDiscriminator(ndf=4).state_dict(), "pixel.pth")
    for words in (["translate", "--input", "in", "--output", "out", "--device", "cpu"], ["export", "--onnx", "g.onnx"]):
        assert main([*words, "--weights", "pixel.pth"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: pixel.pth: is a Pixel discriminator") and error.endswith("and translates none")
    assert not (folder / "out").exists() and not (folder / "g.onnx").exists()


def test_what_cannot_be_cut_into_tiles_names_the_option(folder):
    torch.save(UnetGenerator(ngf=2, num_downs=5).state_dict(), "unet.pth")
    with pytest.raises(UsageError, match="^--tile 64: UnetGenerator cannot be run in tiles: it is not one chain"):
        run("--tile", 64, weights="unet.pth")


def test_tiles_of_16_bits(folder):
    assert run("--tile", 8, "--bits", 16) == 0 and run("--bits", 16, output="whole") == 0
    for name in ("0.png", "1.png", "2.png"):
        tiled, untiled = (read_image(folder / place / name) for place in ("out", "whole"))
        assert tiled.dtype == np.float32 and abs(tiled - untiled).max() < 0.05  # of 255


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
