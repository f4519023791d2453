"""Folders as they come, built at random: every picture in them is found and right, whatever else lies there is told of,
or one sentence says what cannot be used. A long run by hand: `python tests/i2i/data/test_fuzz.py 2000`."""

import argparse
import io
import os
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from i2i.cli.evaluate import add_arguments, run
from i2i.config import Config
from i2i.data import ImageOptions, list_images, open_dataset, open_training_data, read_image
from i2i.data.images import UNREADABLE, inspect_pages
from i2i.errors import UsageError
from i2i.inference.outputs import find_jobs
from i2i.methods.stargan import StarGANConfig

ODD_NAMES = (
    *("a", "B", "with space", "d\u00e9j\u00e0 vu", "\u2603\u732b", "-dash", "a,b", "x=y", "50%", "#1", "tail ", "v1.2"),
    *(
        "[1]",
        "it's",
        'say "x"',
        "$HOME",
        "a\\b",
        "~",
        "caf\udce9",
        "\udcff\udcfe",
        "n" * 120,
        "trainA",
        "x.jpg",
        "\u202eabc",
    ),
)
HIDDEN_FOLDERS = (".git", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found")
HIDDEN_FILES = ("._{}.jpg", ".{}.png", "Thumbs.db", ".DS_Store", "desktop.ini")
# Ending -> (mode, how to save); lossy ones of a single shade come out right within 3 levels.
WRITERS = {
    **{ending: ("RGB", {}) for ending in (".jpg", ".JPG", ".jpeg", ".jfif", ".png", ".PNG", ".bmp", ".tif", ".TIFF")},
    **{ending: ("RGB", {}) for ending in (".tga", ".ppm", ".webp", ".gif", ".pcx", ".jp2", ".sgi", ".qoi", ".dds")},
    **{ending: ("L", {}) for ending in (".pgm", ".Jpg", ".Png", ".TIF")},
    ".PnG": ("RGBA", {}),
    ".tiff": ("CMYK", {}),
    ".apng": ("P", {}),
    ".GIF": ("P", {}),
    ".Tif": ("I;16", {}),
}


class Tree:
    """What was put into a folder, and so what must come out."""

    def __init__(self, root: Path, rng: np.random.Generator, size: tuple[int, int]):
        self.root, self.rng, self.size = root, rng, size
        self.good: dict[Path, int] = {}  # shade by real path
        self.breaks: set[Path] = set()  # a good header, and pixels that end
        self.bad: set[Path] = set()
        self.other: list[Path] = []
        self.several: set[Path] = set()
        self.hidden: set[Path] = set()
        root.mkdir(parents=True)

    def pick(self, choices):
        return choices[int(self.rng.integers(len(choices)))]

    def fill(self, things: int, risky: float) -> "Tree":
        folders = [self.root]
        for number in range(things):
            folder = self.pick(folders)
            name = f"{self.pick(ODD_NAMES)}{number}"
            kind = self.rng.random()
            if kind < 0.15:
                inner = folder / (name + self.pick(("", ".jpg", ".d")))
                inner.mkdir()
                folders.append(inner)
            elif kind < 0.25:
                self.hide(folder, name)
            elif kind < 0.35:
                self.link(folder / name, self.pick(folders))
            elif kind < 0.35 + risky:
                self.spoil(folder, name)
            else:
                self.picture(folder / (name + self.pick(tuple(WRITERS))))
        return self

    def picture(self, path: Path, keep: bool = True) -> Path:
        shade = int(self.rng.integers(256))
        mode, options = WRITERS[path.suffix]
        if mode == "I;16":
            image = Image.fromarray(np.full(self.size[::-1], shade * 257, np.uint16))
        else:
            image = Image.new("RGB", self.size, (shade,) * 3).convert("L" if mode == "P" else "RGB").convert(mode)
        image.save(os.fsencode(path), format=Image.registered_extensions()[path.suffix.lower()], **options)
        if keep:
            self.good[Path(os.path.realpath(path))] = shade
        return path

    def hide(self, folder: Path, name: str) -> None:
        if self.rng.random() < 0.5:
            folder = folder / self.pick(HIDDEN_FOLDERS)
            folder.mkdir(exist_ok=True)
            self.hidden.add(self.picture(folder / f"{name}.png", keep=False))
        else:
            path = folder / self.pick(HIDDEN_FILES).format(name)
            path.write_bytes(b"whatever")
            self.hidden.add(path)

    def link(self, path: Path, target: Path) -> None:
        kind = self.pick(("folder", "file", "nowhere", "itself", "parent"))
        if kind == "file":
            outside = self.root.parent / f"outside {len(self.good)}{path.name}.png"
            self.picture(outside)
            path.with_name(path.name + ".png").symlink_to(outside)
        elif kind in ("folder", "parent"):
            path.symlink_to(target if kind == "folder" else path.parent)
        else:
            path = path.with_name(path.name + ".png")
            path.symlink_to("nowhere at all" if kind == "nowhere" else path.name)
            self.bad.add(path)

    def spoil(self, folder: Path, name: str) -> None:
        kind = self.pick(("junk", "empty", "cut", "pipe", "float", "text", "foreign", "pages", "locked"))
        path = folder / f"{name}.png"
        if kind == "junk":
            path.write_bytes(self.rng.bytes(300))
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "float":
            path = folder / f"{name}.tif"
            tifffile.imwrite(path, np.zeros((8, 8), np.float32))
        if kind in ("junk", "empty", "pipe", "float"):
            self.bad.add(path)
        elif kind == "cut":
            noise = self.rng.integers(0, 256, (*self.size[::-1], 3), dtype=np.uint8)
            Image.fromarray(noise).save(os.fsencode(path))
            path.write_bytes(path.read_bytes()[: 60 + path.stat().st_size // 2])
            self.breaks.add(path)
        elif kind == "pages":
            path = folder / (name + self.pick((".tif", ".gif", ".png", ".webp")))
            frames = [Image.new("RGB", self.size, (shade,) * 3) for shade in (0, 100, 200)]
            form = Image.registered_extensions()[path.suffix]
            frames[0].save(os.fsencode(path), format=form, save_all=True, append_images=frames[1:])
            self.several.add(path)
        else:
            path = folder / (name + {"text": ".txt", "foreign": ".heic", "locked": ".Zip"}[kind])
            path.write_bytes(b"something")
            self.other.append(path)


def said(path: Path) -> str:
    """As stderr shows it, and its names may hold what no terminal does."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def attempt(function, *args, **kw):
    """(result or UsageError, what was said). Any other exception is what this file looks for."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace")
    try:
        with redirect_stderr(stream), redirect_stdout(stream):
            result = function(*args, **kw)
    except UsageError as error:
        assert "\n" not in str(error), error
        result = error
    stream.flush()
    return result, raw.getvalue().decode()


def check_listing(tree: Tree) -> None:
    found, words = attempt(list_images, tree.root)
    assert not any(said(path) in words for path in tree.hidden if path.name[0] == ".")
    if tree.other:
        assert f"{len(tree.other)} file" in words and all(path.suffix.lower() in words for path in tree.other)
    assert all(said(path.name) in words for path in tree.bad), (tree.bad, words)
    if tree.several:
        assert isinstance(found, UsageError) and any(str(path) in str(found) for path in tree.several), found
        found, _ = attempt(list_images, tree.root, "first")
    if not (tree.good or tree.breaks or tree.several):
        assert isinstance(found, UsageError)
        return
    real = {Path(os.path.realpath(picture.path)) for picture in found.pictures}
    assert real == tree.good.keys() | {Path(os.path.realpath(path)) for path in tree.breaks | tree.several}
    assert len(real) == len(found.pictures)  # nothing twice
    for picture in found.pictures:
        path = Path(os.path.realpath(picture.path))
        if picture.path in tree.breaks:
            with pytest.raises(UNREADABLE):
                read_image(picture.path, 3)
            continue
        image = read_image(picture.path, 3, picture.page)
        assert image.shape == (picture.height, picture.width, 3) == (*tree.size[::-1], 3)
        assert np.abs(image - float(tree.good.get(path, 0))).max() <= 3, (picture, image[0, 0], tree.good.get(path))
    if not tree.several:
        jobs, _ = attempt(find_jobs, [tree.root], tree.root.parent / "out")
        assert isinstance(jobs, UsageError) or len(jobs) == len(found.files)


def shades(*trees: Tree) -> set[int]:
    return {0, *(shade for tree in trees for shade in tree.good.values())}


def check_items(data, channels: list[set[int]], count: int) -> None:
    """Every item shows one shade, and one that is there."""
    for number in range(count):
        try:
            item = data.item(number)
        except UsageError as error:  # all that are left of a folder break off
            assert "can be read" in str(error) or "cannot be read" in str(error)
            return
        for image, known in zip(item, channels, strict=False):
            levels = (image + 1) * 127.5
            assert float(levels.max() - levels.min()) < 6 and min(abs(float(levels.mean()) - s) for s in known) <= 3.5


def check_training(root: Path, a: Tree, b: Tree) -> None:
    settings = {"data": (str(root),), "load_size": 8, "crop_size": 8, "flip": False}
    pages = "first" if a.several or b.several else "refuse"
    data, _ = attempt(open_training_data, Config(**settings, pages=pages))
    if isinstance(data, UsageError):
        assert any(not (tree.good or tree.breaks or tree.several) for tree in (a, b)), data
        return
    attempt(check_items, data, [shades(a), shades(b)], 6)
    preview, _ = attempt(data.preview, 3)
    if all(tree.good or tree.several for tree in (a, b)):
        assert not isinstance(preview, UsageError), preview
    pairs, _ = attempt(open_dataset, "aligned", (str(a.root), str(b.root)), options=ImageOptions(8, 8, pages=pages))
    if not isinstance(pairs, UsageError):
        assert all(x.path.stem == y.path.stem for x, y in pairs.entries)
    kind = StarGANConfig(
        **settings | {"crop_size": 32, "load_size": 32},
        label_kind="classes",
        selected_attrs=(a.root.name, b.root.name),
        d_repeat_num=3,
        pages=pages,
    )
    labelled, _ = attempt(open_training_data, kind)
    if not isinstance(labelled, UsageError):
        attempt(check_items, labelled, [shades(a, b)], 6)


def check_lists(tree: Tree, rng: np.random.Generator) -> None:
    """The same files by a list, in any dress."""
    paths = [path for path in (*tree.good, *tree.bad, *tree.breaks) if path.name.strip() == path.name]
    lines = [os.fsencode(os.path.relpath(path, tree.root.parent)) for path in paths]
    lines = [line for line in lines if line.strip() == line]
    ending = (b"\n", b"\r\n")[int(rng.integers(2))]
    place = tree.root.parent / "list.txt"
    place.write_bytes((b"", b"\xef\xbb\xbf")[int(rng.integers(2))] + ending.join([*lines, b"._x.png", b""]) + ending)
    found, words = attempt(list_images, place)
    wanted = {os.path.realpath(os.path.join(os.fsencode(tree.root.parent), line)) for line in lines}
    readable = {os.fsencode(os.path.realpath(path)) for path in (*tree.good, *tree.breaks)} & wanted
    if isinstance(found, UsageError):
        assert not readable
    else:
        assert {os.fsencode(os.path.realpath(picture.path)) for picture in found.pictures} == readable
        assert f"1 of {len(lines) + 1} lines left out" in words


def check_evaluation(a: Tree, b: Tree) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for pages in ("refuse", "all"):
        words = ["--real", str(a.root), "--fake", str(b.root), "--metrics", "psnr", "--device", "cpu", "--pages", pages]
        result, _ = attempt(run, parser.parse_args(words))
        assert isinstance(result, UsageError) or result == 0


def one_case(seed: int, folder: Path) -> None:
    rng = np.random.default_rng(seed)
    size = [(16, 12), (12, 12), (33, 9)][int(rng.integers(3))]
    risky = [0.0, 0.1, 0.3, 0.65][int(rng.integers(4))]
    a, b = (Tree(folder / f"train{s}", rng, size).fill(int(rng.integers(0, 14)), risky) for s in "AB")
    if rng.random() < 0.5:
        for s in "AB":
            if rng.random() < 0.7:
                Tree(folder / f"test{s}", rng, size).fill(int(rng.integers(0, 4)), 0.5)
    for tree in (a, b):
        check_listing(tree)
    check_lists(a, rng)
    check_training(folder, a, b)
    check_evaluation(a, b)


def damaged(seed: int, folder: Path) -> None:
    """A good file with some bits turned over, or its end cut off: a picture, or one of UNREADABLE."""
    rng = np.random.default_rng(seed)
    tree = Tree(folder / "x", rng, (16, 12))
    path = tree.picture(tree.root / f"x{tree.pick(tuple(WRITERS))}")
    data = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        data = data[: int(rng.integers(len(data)))]
    for _ in range(int(rng.integers(1, 8))):
        if data:  # mostly in the header, where the meaning is
            data[int(rng.integers(min(len(data), tree.pick((40, 200, 10**6)))))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    for function in (inspect_pages, read_image):
        try:
            function(path)
        except UNREADABLE:
            pass


def test_folders_at_random(tmp_path):
    for seed in range(12):
        one_case(seed, tmp_path / str(seed))


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files
def test_damaged_files_at_random(tmp_path):
    for seed in range(60):
        damaged(seed, tmp_path / str(seed))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for seed in range(int(sys.argv[1])):
        with tempfile.TemporaryDirectory() as place:
            for check in (one_case, damaged):
                try:
                    check(seed, Path(place) / check.__name__)
                except BaseException:
                    print("seed", seed, check.__name__, flush=True)
                    raise
    print("done")
