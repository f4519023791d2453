"""What is found in folders and lists, whoever and whatever wrote them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2i.cli import options
from i2i.config import Config
from i2i.data import ImageOptions, inspect_image, list_images, open_dataset, open_training_data, read_image
from i2i.data.attributes import find_attributes, find_classes, read_attributes, split_official
from i2i.data.folders import pair
from i2i.data.labelled import open_pictures
from i2i.data.listing import read_list, walk
from i2i.errors import UsageError
from i2i.files import read_text
from i2i.inference.outputs import find_jobs
from i2i.methods.matchgan import MatchGANConfig
from i2i.methods.stargan import StarGANConfig

SYSTEM_FILES = ("._a.png", ".hidden.jpg", "Thumbs.db", "desktop.ini", ".DS_Store")
SYSTEM_FOLDERS = (".ipynb_checkpoints", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".git", "@EADIR")


def save(path, shade=0, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def clutter(folder):
    """What systems leave behind: pictures too, as thumbnails are."""
    save(folder / "b.png", 99)
    data = (folder / "b.png").read_bytes()
    (folder / "b.png").unlink()
    for name in SYSTEM_FILES:
        (folder / name).write_bytes(data)
    for name in SYSTEM_FOLDERS:
        save(folder / name / "deeper" / "a.png", 99)


def names(found):
    return [picture.path.name for picture in found.pictures]


# --- folders


def test_hidden_and_system_files_are_passed_over_everywhere(tmp_path, capsys):
    for side in ("trainA", "trainB", "testA", "testB"):
        save(tmp_path / side / "sub" / "a.png")
        clutter(tmp_path / side)
        clutter(tmp_path / side / "sub")
    assert walk(tmp_path / "trainA") == [tmp_path / "trainA/sub/a.png"]
    assert names(list_images(tmp_path / "trainA")) == ["a.png"]
    a, b = list_images(tmp_path / "trainA"), list_images(tmp_path / "trainB")
    assert [(x.path.name, y.path.name) for x, y in pair(a, b)] == [("a.png", "a.png")]
    assert [job.source for job in find_jobs([tmp_path / "trainA"], tmp_path / "out")] == [tmp_path / "trainA/sub/a.png"]
    assert [len(part) for part in find_classes((str(tmp_path),), ("trainA", "trainB"))] == [2, 2]
    with pytest.raises(UsageError, match="selected_attrs must be of testA, testB, trainA, trainB$"):
        clutter(tmp_path)
        find_classes((str(tmp_path),), ("trainC",))
    assert capsys.readouterr().err == ""  # there is nothing to be said of them
    assert names(list_images(tmp_path / "trainA/.hidden.jpg")) == [".hidden.jpg"]  # unless that is what was asked for
    assert names(list_images(tmp_path / "trainA/.git")) == ["a.png"]


def test_a_folder_that_links_lead_to_twice_counts_once_and_as_itself(tmp_path, capsys):
    save(tmp_path / "a" / "z" / "deep" / "x.png")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "a" / "z" / "deep")
    (tmp_path / "a" / "z" / "up").symlink_to(tmp_path / "a")
    save(tmp_path / "elsewhere" / "y.png")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "a")
    for name in ("c", "d"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "elsewhere")
    found = [str(path.relative_to(tmp_path / "a")) for path in walk(tmp_path / "a")]
    assert found == ["c/y.png", "z/deep/x.png"]
    assert "a/b and 3 more left out, because a link leads to what is there already" in capsys.readouterr().err


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, capsys):
    save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "s.png")) if len(str(tmp_path)) < 90 else None
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "empty.png").write_bytes(b"")
    save(tmp_path / "folder.png" / "inside.png")
    assert sorted(names(list_images(tmp_path))) == ["good.png", "inside.png"]
    err = capsys.readouterr().err
    for name in ("pipe.png (not a regular file)", "loop.png", "gone.png", "empty.png"):
        assert name in err
    for read in (inspect_image, read_image):
        with pytest.raises(ValueError, match="not a regular file"):
            read(tmp_path / "pipe.png")


def test_folders_and_files_without_the_right_to_read(tmp_path, capsys, monkeypatch):
    """By a stand-in: the tests may run as root, who may read everything."""
    save(tmp_path / "x.png"), save(tmp_path / "closed" / "y.png"), save(tmp_path / "secret.png")
    scandir, opening = os.scandir, Image.open

    def refuse(path):
        if Path(path).name in ("closed", "secret.png"):
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scandir(path))
    monkeypatch.setattr(Image, "open", lambda path, *args, **kw: refuse(path) or opening(path, *args, **kw))
    assert names(list_images(tmp_path)) == ["x.png"]
    err = capsys.readouterr().err
    assert "closed left out, it cannot be listed (Permission denied)" in err and "secret.png (" in err
    with pytest.raises(UsageError, match="closed: cannot be listed .Permission denied"):
        list_images(tmp_path / "closed")


# --- lists and tables


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_texts_of_any_editor(tmp_path, ending, mark):
    for name in ("0.png", "1.png"):
        save(tmp_path / "images" / name)

    def write(name, *lines):
        (tmp_path / name).write_bytes(mark + ending.join(lines).encode() + ending.encode())
        return tmp_path / name

    listed = write("list.txt", "images/0.png", "", "  images/1.png ")
    assert read_list(listed) == [tmp_path / "images/0.png", tmp_path / "images/1.png"]
    assert names(list_images(listed)) == ["0.png", "1.png"]
    table = write("list_attr_celeba.txt", "2", "Male Young", "0.png 1 -1", "1.png -1 1")
    assert read_attributes(table, ("Young",)) == [("0.png", (0,)), ("1.png", (1,))]
    _, entries = find_attributes((str(tmp_path),), ("Male",))
    train, test = split_official(entries, write("part.txt", "0.png 0", "1.png 2"))
    assert [label for _, label in train + test] == [(1,), (0,)]
    assert options.read_file(write("settings.yaml", "crop-size: 64", "method: cut")) == {
        "crop_size": 64,
        "method": "cut",
    }


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_refused_by_that_name(tmp_path, encoding):
    (tmp_path / "x.txt").write_bytes("a.png\nb.png\n".encode(encoding))
    wanted = f"x.txt is written in UTF-{encoding[4:6]}: save it as UTF-8"
    for read in (
        read_text,
        read_list,
        list_images,
        options.read_file,
        lambda path: read_attributes(path, ()),
        lambda path: split_official([], path),
    ):
        with pytest.raises(UsageError, match=wanted):
            read(tmp_path / "x.txt")


def test_lists_leave_out_what_find_has_brought_in(tmp_path, capsys):
    for side in "ab":
        for name in ("0.png", "1.png", "2.png", "._1.png", "@eaDir/0.png"):
            save(tmp_path / side / name)
    (tmp_path / "a.txt").write_text("a/0.png\na/._1.png\na/2.png\na/@eaDir/0.png\n")
    assert read_list(tmp_path / "a.txt") == [tmp_path / "a/0.png", tmp_path / "a/2.png"]
    assert names(list_images(tmp_path / "a.txt")) == ["0.png", "2.png"]
    assert capsys.readouterr().err.count("2 of 4 lines left out") == 2
    assert len(find_jobs([tmp_path / "a.txt"], tmp_path / "out")) == 2
    # lines pair before any is left out: else those behind it would all have a wrong partner
    (tmp_path / "b.txt").write_text("b/0.png\nb/1.png\nb/2.png\nb/._1.png\n")
    pairs = pair(list_images(tmp_path / "a.txt"), list_images(tmp_path / "b.txt"))
    assert [(a.path.name, b.path.name) for a, b in pairs] == [("0.png", "0.png"), ("2.png", "2.png")]
    assert "2 of 4 pairs left out" in capsys.readouterr().err
    # a hidden folder on the way is the user's own
    save(tmp_path / ".cache" / "x.png")
    (tmp_path / "c.txt").write_text(".cache/x.png\n")
    assert names(list_images(tmp_path / "c.txt")) == ["x.png"]


def test_hidden_lines_of_a_table_and_its_count(tmp_path, capsys):
    table = tmp_path / "t.txt"
    table.write_text("5\nMale\n0.png 1\n._0.png 1\n../x/1.png -1\n")
    assert read_attributes(table, ("Male",)) == [("0.png", (1,)), ("../x/1.png", (0,))]
    err = capsys.readouterr().err
    assert "1 lines left out" in err and "its first line says 5, and 3 images follow" in err


def test_names_that_are_not_utf_8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", folder + b"/\xff\xfe.png")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9/\xff\xfe.png\n")
    (found,) = list_images(tmp_path / "list.txt").pictures
    assert os.fsencode(found.path) == folder + b"/\xff\xfe.png"
    assert read_image(found.path).shape == (16, 16, 3)
    assert len(list_images(Path(os.fsdecode(folder))).pictures) == 1


@pytest.mark.slow  # 26 s on a busy machine: a run of its own
def test_a_terminal_that_cannot_show_a_name_stops_nothing(tmp_path):
    """The whole way from a file of settings with a byte order mark, in the poorest of terminals."""
    root = os.fsencode(tmp_path) + b"/caf\xe9"
    for side in ("trainA", "trainB"):
        save(tmp_path / "data" / side / "f\u00fc\u2603.png", size=(32, 32))
    os.rename(tmp_path / "data", root)
    settings = "data: {}\nmethod: cyclegan\nsteps: 1\nload_size: 32\ncrop_size: 32\nngf: 4\nndf: 4\n"
    settings += "generator: resnet_1blocks\ntensorboard: true\ndevice: cpu\nimpl: reference\n"
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbf" + settings.replace("data: {}\n", "").encode())
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "i2i", "train", "--config", "s.yaml", "--output", "run", "--data", root]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    assert b"caf\\udce9/trainA (1 image)" in result.stdout
    assert (tmp_path / "run" / "losses.csv").read_text().count("\n") == 2


# --- pictures to look at are not worth a run


def train_on(tmp_path, **settings):
    for side in ("trainA", "trainB"):
        save(tmp_path / side / "a.png", 40, (32, 32))
    return open_training_data(Config(data=(str(tmp_path),), load_size=32, crop_size=32, **settings))


def several(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGB", (32, 32), (shade, shade, shade)) for shade in (0, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def broken(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no picture")


SPOILED = {
    "both empty": lambda root: [(root / side).mkdir() for side in ("testA", "testB")],
    "inputs alone": lambda root: save(root / "testA/x.png"),
    "answers empty": lambda root: (save(root / "testA/x.png"), (root / "testB").mkdir()),
    "unreadable": lambda root: (save(root / "testA/x.png"), broken(root / "testB/x.png")),
    "unreadable val": lambda root: (broken(root / "valA/x.png"), broken(root / "valB/x.png")),
    "several pages": lambda root: [several(root / f"test{side}/x.gif") for side in "AB"],
}


@pytest.mark.parametrize("how", SPOILED)
def test_test_folders_that_cannot_be_used(tmp_path, capsys, how):
    SPOILED[how](tmp_path)
    data = train_on(tmp_path)
    a, b = data.preview(2)
    assert a.shape == b.shape == (1, 3, 32, 32) and a.unique().tolist() == [pytest.approx(40 / 127.5 - 1)]
    assert "pictures of the run are of training images: " in capsys.readouterr().err


def test_no_test_folders_are_nothing_to_speak_of(tmp_path, capsys):
    train_on(tmp_path)
    assert capsys.readouterr().err == ""


def test_test_pictures_that_break_off_or_go_away(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for side in "AB":
        (tmp_path / f"test{side}").mkdir()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"test{side}/x.png")
    whole = (tmp_path / "testB/x.png").read_bytes()
    (tmp_path / "testB/x.png").write_bytes(whole[:1000])
    data = train_on(tmp_path)
    assert len(data.preview(1)[0]) == 1 and len(data.preview(1)[0]) == 1
    assert capsys.readouterr().err.count("pictures of the run are of training images from now on: ") == 1


def test_pairs_of_the_test_phase_without_answers(tmp_path, capsys):
    save(tmp_path / "train/a.png", 40, (64, 32))
    save(tmp_path / "test/a.png", 40, (31, 32))
    options = ImageOptions(load_size=32, crop_size=32)
    assert open_dataset("aligned", (str(tmp_path),), options=options).preview(1)[0].shape == (1, 3, 32, 32)
    assert "pictures of the run are of training images: " in capsys.readouterr().err


def classes(tmp_path, **settings):
    for name in ("angry", "happy"):
        save(tmp_path / "train" / name / "a.png", 40, (32, 32))
    settings = {"selected_attrs": ("angry", "happy"), "crop_size": 32, "d_repeat_num": 3} | settings
    return open_training_data(StarGANConfig(data=(str(tmp_path),), label_kind="classes", **settings))


def test_labelled_test_pictures_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "test" / "angry").mkdir(parents=True)
    assert classes(tmp_path).preview(4)[0].shape == (2, 3, 32, 32)
    assert "pictures of the run are of training images: " in capsys.readouterr().err
    for name in ("angry", "happy"):
        broken(tmp_path / "test" / name / "x.png")
    assert classes(tmp_path).preview(4)[0].shape == (2, 3, 32, 32)
    assert "none of its 2 images can be read" in capsys.readouterr().err
    for name in ("angry", "happy"):
        path = tmp_path / "test" / name / "x.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:1000])
    data = classes(tmp_path)
    assert data.preview(4)[0].shape == data.preview(4)[0].shape == (2, 3, 32, 32)
    assert capsys.readouterr().err.count("from now on") == 1


def test_labelled_pictures_are_opened_before_the_run(tmp_path, capsys):
    broken(tmp_path / "train/angry/broken.png")
    save(tmp_path / "train/angry/deep.png")
    Image.new("LA", (32, 32)).save(tmp_path / "train/angry/deep.png")
    assert len(classes(tmp_path)) == 3
    err = capsys.readouterr().err
    assert "broken.png" in err and "1 of 4 images skipped" in err
    with pytest.raises(UsageError, match="4 channels asked for"):
        classes(tmp_path, input_nc=4, output_nc=4)
    several(tmp_path / "train/happy/b.gif")
    with pytest.raises(UsageError, match="b.gif holds 2 pages or frames"):
        classes(tmp_path)
    data = classes(tmp_path, pages="all")
    shades = sorted(round((data.item(n)[0].mean().item() + 1) * 127.5) for n in range(5))
    assert shades == [0, 0, 40, 40, 200]


def test_a_partition_without_test_pictures(tmp_path):
    entries = [(Path(f"{i}.png"), (i,)) for i in range(2)]
    (tmp_path / "p.txt").write_text("0.png 0\n1.png 0\n")
    assert split_official(entries, tmp_path / "p.txt") == (entries, [])


def test_no_labelled_pictures_held_out(tmp_path, capsys):
    for name in ("0.png", "1.png"):
        save(tmp_path / "images" / name, 40, (32, 32))
    (tmp_path / "list_attr_celeba.txt").write_text("2\nMale Young\n0.png 1 1\n1.png -1 1\n")
    (tmp_path / "list_eval_partition.txt").write_text("0.png 0\n1.png 0\n")
    config = MatchGANConfig(data=(str(tmp_path),), selected_attrs=("Male", "Young"), crop_size=32, d_repeat_num=3)
    source, test = open_pictures(config, config.label_space())
    assert test is source and len(source.labels) == 2
    assert "pictures of the run are of training images: none are held out" in capsys.readouterr().err
