"""Attribute files, class folders, and which labelled images come when."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from i2i.data import batches, open_training_data
from i2i.data.attributes import (
    LabelledPictures,
    find_attributes,
    find_classes,
    read_attributes,
    split_official,
    split_published,
)
from i2i.data.labelled import FewLabels, InTurn
from i2i.data.labels import LabelSpace
from i2i.errors import UsageError
from i2i.methods.matchgan import MatchGANConfig
from i2i.methods.stargan import StarGANConfig

NAMES = ("Black_Hair", "Blond_Hair", "Male")
SPACE = LabelSpace(NAMES, ("Black_Hair+Blond_Hair",))


def write_celeba(root: Path, labels: list[tuple[int, ...]]) -> Path:
    """Pictures of 20 x 24 pixels whose level is their number, with the attributes NAMES and another between them."""
    (root / "images").mkdir(parents=True)
    lines = [str(len(labels)), "Black_Hair  Bald Blond_Hair Male"]
    for i, (black, blond, male) in enumerate(labels):
        Image.new("RGB", (20, 24), (i, i, i)).save(root / "images" / f"{i:06d}.png")
        lines.append(f"{i:06d}.png  " + "  ".join("1" if value else "-1" for value in (black, 1, blond, male)))
    (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return root


def level(image: torch.Tensor) -> int:
    return round(float((image.mean() + 1) * 127.5))


def test_attribute_file(tmp_path):
    labels = [(1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 1)]
    root = write_celeba(tmp_path / "celeba", labels)
    table, entries = find_attributes((str(root),), NAMES)
    assert [label for _, label in entries] == labels and table == root / "list_attr_celeba.txt"
    assert find_attributes((str(root / "images"), str(table)), ("Male", "Black_Hair"))[1][1][1] == (1, 0)
    table.write_text(table.read_text().replace("\n000002", "\n\n000002") + "\n")  # empty lines are none
    assert [label for _, label in read_attributes(table, NAMES)] == labels
    for text, message in (
        ("4\nMale\n1.png 1\n", "has no attribute Black_Hair, Blond_Hair; there are Male"),
        ("4\nBlack_Hair Blond_Hair Male\n1.png 1 1\n", "line 3: want a file name and 3 values of 1 or -1"),
        ("4\nBlack_Hair Blond_Hair Male\n1.png 1 1 7\n", "line 3: want a file name and 3 values of 1 or -1"),
        ("4\n", "not an attribute file"),
    ):
        table.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_attributes(table, NAMES)
    table.write_text("1\nBlack_Hair Blond_Hair Male\nelsewhere.png 1 1 -1\n")
    with pytest.raises(UsageError, match=r"elsewhere.png is not there"):
        find_attributes((str(root),), NAMES)
    with pytest.raises(UsageError, match="no such folder of pictures; data must be a folder with list_attr_celeba.txt"):
        find_attributes((str(tmp_path),), NAMES)


def test_splits():
    entries = [(Path(f"{i}.png"), (i,)) for i in range(6)]
    train, test = split_published(entries, 2)
    # What Python's shuffle makes of six lines after random.seed(1234).
    assert [label[0] for _, label in test + train] == [1, 2, 5, 4, 0, 3]
    with pytest.raises(UsageError, match="test_images must be less than the 6 images that there are, got 6"):
        split_published(entries, 6)


def test_official_partition(tmp_path):
    entries = [(Path(f"a/{i}.png"), (i,)) for i in range(4)]
    partition = tmp_path / "list_eval_partition.txt"
    partition.write_text("0.png 0\n1.png 1\n2.png 2\n3.png 0\n")
    train, test = split_official(entries, partition)
    assert [label for _, label in train] == [(0,), (3,)] and [label for _, label in test] == [(2,)]
    partition.write_text("0.png 1\n")
    with pytest.raises(UsageError, match="leaves 0 images to train on and 0 to test"):
        split_official(entries, partition)


def test_class_folders(tmp_path):
    for folder in ("train/angry", "train/happy/deeper", "test/angry", "test/happy"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    train, test = find_classes((str(tmp_path),), ("happy", "angry"))
    assert [(path.parent.name, label) for path, label in train] == [("deeper", (1, 0)), ("angry", (0, 1))]
    assert len(test) == 2 and test[0][0] == tmp_path / "test" / "happy" / "a.png"
    train, test = find_classes((str(tmp_path / "train"),), ("angry",))
    assert train == test == [(tmp_path / "train" / "angry" / "a.png", (1,))]
    with pytest.raises(UsageError, match="has no folder sad; selected_attrs must be of angry, happy"):
        find_classes((str(tmp_path),), ("angry", "sad"))


def test_pictures_are_cut_from_the_middle_and_damaged_ones_replaced_by_their_like(tmp_path, capsys):
    pixels = np.zeros((30, 20, 3), dtype=np.uint8)
    pixels[10:20, 5:15] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 20), (51, 51, 51)).save(tmp_path / "c.png")
    entries = [(tmp_path / f"{name}.png", label) for name, label in zip("bacb", [(1,), (0,), (1,), (2,)])]
    source = LabelledPictures(entries, 10, 5, 3, flip=False)
    assert torch.equal(source.image(1, None), torch.ones(3, 5, 5))
    assert LabelledPictures(entries, 0, 20, 3, flip=False).image(1, None).mean() == pytest.approx(-1 + 2 * 100 / 400)
    assert level(source.image(0, None)) == 51
    assert level(source.image(0, None)) == 51
    assert capsys.readouterr().err.count("skipped, unreadable") == 1
    with pytest.raises(UsageError, match="neither it nor another image of its label can be read"):
        source.image(3, None)


def test_mirroring_is_the_images_own(tmp_path):
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = LabelledPictures([(tmp_path / "a.png", (1,))], 0, 8, 3, flip=True)
    sides = {float(source.image(0, np.random.default_rng(i))[0, 0, 0]) for i in range(10)}
    assert sides == {-1.0, 1.0} and source.image(0, None)[0, 0, 0] == 1


class Numbers:
    """Images that are their number, to follow which comes when."""

    def __init__(self, labels: list[tuple[int, ...]]):
        self.labels = labels

    def image(self, index: int, rng: np.random.Generator | None) -> torch.Tensor:
        return torch.tensor([float(index), float(rng is not None)])

    def describe(self) -> str:
        return "numbers"


def test_all_images_come_once_a_pass_each_time_in_a_new_order():
    source = Numbers([SPACE.vectors[i % 6] for i in range(10)])
    data = InTurn(source, source, seed=3)
    passes = [[int(data.item(p * 10 + i)[0][0]) for i in range(10)] for p in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10)) and passes[0] != passes[1]
    image, label = data.item(4)
    assert tuple(label.int().tolist()) == source.labels[int(image[0])]
    assert not hasattr(data, "held_out")


def few(count: int = 240, percentage: float = 10, per_step: int = 16) -> FewLabels:
    # Every 13th label makes no sense: two hair colours.
    labels = [(1, 1, 0) if i % 13 == 0 else SPACE.vectors[i % 6] for i in range(count)]
    return FewLabels(Numbers(labels), Numbers(labels), SPACE, percentage, per_step, seed=1)


def test_labels_are_known_round_the_classes():
    data = few()
    assert len(data) == 240 - 19 and data.count == 23  # a tenth of 221, rounded up
    assert sorted(map(len, data.known)) == [3, 4, 4, 4, 4, 4]
    assert not set(itertools.chain(*data.known)) & set(data.others)
    assert all(data.source.labels[i] in SPACE.vectors for i in data.others)
    assert len(data.others) == len(data) - data.count


def test_batches_with_labels_are_four_classes_of_four_images():
    data = few()
    seen = []
    for step in range(0, 40, 2):
        images, labels = zip(*(data.item(16 * step + i) for i in range(16)))
        assert all(bool(image[1]) for image in images)  # mirrored at random
        groups = [{tuple(label.int().tolist()) for label in labels[i : i + 4]} for i in range(0, 16, 4)]
        assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 4
        for image, label in zip(images, labels):
            assert data.source.labels[int(image[0])] == tuple(label.int().tolist())
        seen += [int(image[0]) for image in images]
    assert set(seen) == set(itertools.chain(*data.known))  # all that are known, and no other


def test_the_other_batches_have_no_labels_and_go_through_the_rest():
    data = few()
    numbers = [16 * step + i for step in range(1, 60, 2) for i in range(16)]
    items = [data.item(number) for number in numbers]
    assert all(label.isnan().all() and not image[1] for image, label in items)
    seen = [int(image[0]) for image, _ in items]
    once = len(data.others)
    assert sorted(seen[:once]) == sorted(seen[once : 2 * once]) == data.others


def test_two_processes_share_a_step_with_labels_for_both():
    data = few(per_step=32)
    loaders = [list(batches(data, 16, 0, 4, rank=rank, world=2)) for rank in range(2)]
    for step in range(4):
        missing = {bool(loader[step][1].isnan().any()) for loader in loaders}
        assert missing == {step % 2 == 1}
        assert not torch.equal(loaders[0][step][0], loaders[1][step][0])


def test_one_percent_of_labels_is_enough():
    """Fewer images than a batch shows of a class: some are shown twice, where the published code fails."""
    data = few(600, percentage=1)
    assert data.count == 6 and [len(k) for k in data.known] == [1] * 6
    _, labels = zip(*(data.item(i) for i in range(16)))
    assert all(label.isfinite().all() for label in labels)
    with pytest.raises(UsageError, match="must leave 4 classes or more with a known image, got 0.1: 1 of 6 classes"):
        few(600, percentage=0.1)
    with pytest.raises(UsageError, match="must be 100 when all 5 labels are known"):
        few(6, percentage=99)


def test_all_labels_known():
    data = few(percentage=100)
    assert data.others == [] and data.count == len(data)
    assert all(data.item(number)[1].isfinite().all() for number in range(64))


@pytest.mark.parametrize("method", ["stargan", "matchgan"])
def test_from_configuration_to_batches(tmp_path, method):
    labels = [SPACE.vectors[i % 6] for i in range(40)]
    root = write_celeba(tmp_path / "celeba", labels)
    kind, extra = (StarGANConfig, {}) if method == "stargan" else (MatchGANConfig, {"labelled_percentage": 50})
    options = {"data": (str(root),), "selected_attrs": NAMES, "crop_size": 8, "d_repeat_num": 2, "test_images": 5}
    data = open_training_data(kind(**options, **extra))
    assert len(data) == 35
    images, labels = next(batches(data, 16, 0, 1))
    assert images.shape == (16, 3, 8, 8) and images.dtype == torch.float32 and labels.shape == (16, 3)
    for image, label in zip(images, labels):
        assert tuple(label.int().tolist()) == SPACE.vectors[level(image) % 6]
    assert [tuple(each.shape) for each in data.preview(4)] == [(4, 3, 8, 8), (4, 3)]
    if method == "matchgan":
        partition = "".join(f"{i:06d}.png {2 if i < 30 else 0}\n" for i in range(40))
        (root / "list_eval_partition.txt").write_text(partition)
        assert len(open_training_data(kind(**options, **extra))) == 10


def test_sample_images_know_the_answers():
    data = open_training_data(StarGANConfig(**StarGANConfig.SAMPLE))
    image, label = data.item(7)
    assert image.shape == (3, 32, 32) and label.shape == (4,)
    source = data.source
    # The answers themselves, all wrong by 0.02 (where that stays below 1): 20 log10(2 / 0.02).
    assert data.held_out(lambda *_: torch.stack(source.truths) + 0.02) == pytest.approx(40, abs=0.5)
    asked = {}
    untouched = data.held_out(lambda images, wanted: asked.setdefault("images", images))
    assert 10 < untouched < 20 and asked["images"].shape == (56, 3, 32, 32)
    assert data.metric == "PSNR in dB"
    with pytest.raises(UsageError, match="for selected_attrs Red,Green,Blue,Dark and input_nc 3"):
        open_training_data(StarGANConfig(**StarGANConfig.SAMPLE | {"selected_attrs": ("Red", "Blue", "Dark")}))
