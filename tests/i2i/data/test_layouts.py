"""Data sets from folders: what is found, what is skipped or refused, and that a number means an item."""

import numpy as np
import pytest
import torch
from support.image_folders import CALM, noise, opened, same, save, whole

from i2i.data import read_image, to_tensor
from i2i.errors import UsageError


def test_image_that_breaks_off_is_named_and_replaced(root, capsys):
    """A good header and half of the rest: found out only when its turn comes."""
    path = root / "trainA" / "0.png"
    path.write_bytes(path.read_bytes()[:2000])
    data = opened("unaligned", root)
    for number in range(6):
        data.item(number)
    assert data.skipped == {path}
    assert capsys.readouterr().err.count("0.png") == 1
    with pytest.raises(UsageError, match="0.png: cannot be read"):  # a translation must not bear another's name
        opened("single", root / "trainA", phase="test").item(0)


def test_what_cannot_be_given_is_refused_before_anything_runs(root):
    with pytest.raises(UsageError, match="trainA/0.png: 4 channels asked for"):
        opened("unaligned", root, input_nc=4)
    with pytest.raises(UsageError, match="trainA/1.jpg: 7 x 9 pixels, smaller than the crop of 32"):
        opened("unaligned", root, preprocess="crop")


def test_items_have_one_size_whatever_the_images(root):
    data = opened("unaligned", root, input_nc=1)
    assert len(data) == 3
    for number in range(6):
        a, b = data.item(number)
        assert a.shape == (1, 32, 32) and b.shape == (3, 32, 32)
        assert min(a.min(), b.min()) >= -1 and max(a.max(), b.max()) <= 1


def test_crop_is_bicubic_resize_then_window(root):
    places = root / "trainA" / "0.png", root / "trainB"
    resized = whole(places[0], 40)
    windows = [resized[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    data = opened("unaligned", *places, flip=False)
    found = {next(i for i, w in enumerate(windows) if torch.equal(w, data.item(n)[0])) for n in range(12)}
    assert len(found) > 8
    flipped = opened("unaligned", *places)
    mirrors = sum(any(torch.equal(w.flip(2), flipped.item(n)[0]) for w in windows) for n in range(20))
    assert 3 <= mirrors <= 17


def test_full_view_while_the_rate_falls(root):
    data = opened("unaligned", root, flip=False)
    data.full_view_from = 3
    views = [whole(path) for path in (root / "trainA").iterdir()]
    shown = [any(torch.equal(data.item(number)[0], view) for view in views) for number in range(6)]
    assert shown == [False] * 3 + [True] * 3


def test_a_pass_shows_every_image_of_the_larger_folder(root):
    data = opened("unaligned", root, **CALM)
    passes = [[data.item(n)[0].sum().item() for n in range(3 * i, 3 * i + 3)] for i in range(8)]
    assert len(set(passes[0])) == 3 and all(set(one) == set(passes[0]) for one in passes)
    assert len({tuple(one) for one in passes}) > 2  # in a new order each time
    swapped = opened("unaligned", root, direction="BtoA", **CALM)
    first = [swapped.item(n)[0].sum().item() for n in range(3)]
    assert len(set(first)) == 2  # the smaller folder goes round


def test_partners_are_drawn_at_random_or_in_turn(root):
    data = opened("unaligned", root, **CALM)
    a, b = ([whole(path) for path in sorted((root / name).iterdir())] for name in ("trainA", "trainB"))
    partners = {
        (a_i, b_i) for n in range(60) for a_i in range(3) for b_i in range(2) if same(data.item(n), (a[a_i], b[b_i]))
    }
    assert len(partners) == 6
    serial = opened("unaligned", root, serial_batches=True, **CALM)
    assert all(same(serial.item(n), (a[n % 3], b[n % 3 % 2])) for n in range(7))
    swapped = opened("unaligned", root, serial_batches=True, direction="BtoA", **CALM)
    assert all(same(swapped.item(n), (b[n % 3 % 2], a[n % 3])) for n in range(7))


def test_direction_swaps_folders_and_channels(root):
    data = opened("unaligned", root, direction="BtoA", input_nc=1, serial_batches=True, **CALM)
    assert same(data.item(0), (whole(root / "trainB/0.png", channels=1), whole(root / "trainA/0.png")))


def test_items_depend_on_seed_and_number_only(root):
    one, other = opened("unaligned", root), opened("unaligned", root)
    for number in (5, 0, 3):
        assert same(one.item(number), other.item(number))
    seeded = opened("unaligned", root, seed=1)
    assert not all(torch.equal(one.item(n)[0], seeded.item(n)[0]) for n in range(4))


def test_max_dataset_size(root):
    assert len(opened("unaligned", root, max_dataset_size=2)) == 2
    assert len(opened("single", root / "trainA", max_dataset_size=1)) == 1


def test_test_phase_is_in_order_whole_and_falls_back_to_val(root):
    for name in ("valA", "valB"):
        (root / name.replace("val", "train")).rename(root / name)
    with pytest.raises(UsageError, match="has no folder trainA"):
        opened("unaligned", root)
    data = opened("unaligned", root, phase="test")
    assert same(data.item(1), (whole(root / "valA/1.jpg"), whole(root / "valB/1.jpg")))
    save(root / "testA/t.png", noise(40, 40, 7))
    save(root / "testB/t.png", noise(40, 40, 8))
    assert len(opened("unaligned", root, phase="test")) == 1


@pytest.mark.parametrize("mode", ["resize_and_crop", "scale_shortside_and_crop", "none", "zoom"])
def test_preview_is_a_batch_of_calm_pictures(root, mode):
    data = opened("unaligned", root, preprocess=mode)
    data.full_view_from = 1
    a, b = data.preview(2)
    assert a.shape == b.shape == (2, 3, 32, 32) and same(data.preview(2), (a, b))
    assert len(data.preview(99)[0]) == 3
    if mode == "resize_and_crop":
        assert torch.equal(a[1], whole(root / "trainA/1.jpg"))
    save(root / "testA/t.png", noise(40, 40, 7))
    save(root / "testB/t.png", noise(40, 40, 8))
    a, b = opened("unaligned", root, preprocess=mode).preview(2)
    assert len(a) == len(b) == 1
    if mode == "resize_and_crop":
        assert same((a[0], b[0]), (whole(root / "testA/t.png"), whole(root / "testB/t.png")))


def test_small_test_pictures_do_not_stop_training(root):
    """They are scaled for the preview, whatever is cut in training."""
    for name in ("A", "B"):
        save(root / f"train{name}/1.jpg", noise(40, 40))
        save(root / f"test{name}/t.png", noise(20, 20, 7))
    data = opened("unaligned", root, preprocess="crop")
    assert data.preview(1)[0].shape == (1, 3, 32, 32)


def side_by_side(root, count=3, width=48, seed=0):
    """B is the negative of A, so that a pair tells whether it was cut alike."""
    for i in range(count):
        a = noise(40, width, seed + i)
        save(root / "train" / f"{i}.png", np.concatenate([a, 255 - a], axis=1))
    return root


@pytest.mark.parametrize("mode", ["resize_and_crop", "crop", "trim", "zoom", "patch", "scale_width_and_crop"])
def test_pairs_are_cut_and_mirrored_alike(tmp_path, mode):
    data = opened("aligned", side_by_side(tmp_path), preprocess=mode)
    assert len(data) == 3 and "3 pairs, side by side" in data.describe()
    crops = set()
    for number in range(8):
        a, b = data.item(number)
        # a negative stays one through the filter, but for rounding up or down by a level in each pass
        torch.testing.assert_close(a, -b, atol=2.1 / 127.5, rtol=0)
        crops.add(a.sum().item())
    assert len(crops) == 8


def test_left_is_a_and_direction_swaps(tmp_path):
    path = save(tmp_path / "train" / "x.png", np.concatenate([noise(32, 32, 0), noise(32, 32, 1)], axis=1))
    left, right = to_tensor(read_image(path)[:, :32]), to_tensor(read_image(path)[:, 32:])
    assert same(opened("aligned", tmp_path, **CALM).item(0), (left, right))
    assert same(opened("aligned", tmp_path, direction="BtoA", **CALM).item(0), (right, left))
    a, b = opened("aligned", tmp_path, direction="BtoA", input_nc=1, **CALM).item(0)
    assert torch.equal(a, to_tensor(read_image(path, 1)[:, 32:])) and torch.equal(b, left)


def test_odd_width_is_refused(tmp_path):
    side_by_side(tmp_path)
    save(tmp_path / "train" / "odd.png", noise(40, 95))
    with pytest.raises(UsageError, match="odd.png: 95 pixels wide"):
        opened("aligned", tmp_path)


def test_halves_smaller_than_the_crop_are_refused(tmp_path):
    with pytest.raises(UsageError, match="0.png: 30 x 40 pixels, smaller"):
        opened("aligned", side_by_side(tmp_path, width=30), preprocess="crop")


def test_aligned_list_and_test_folder(tmp_path):
    side_by_side(tmp_path)
    (tmp_path / "list.txt").write_text("train/2.png")
    assert len(opened("aligned", tmp_path / "list.txt")) == 1
    (tmp_path / "val").mkdir()
    save(tmp_path / "val" / "v.png", noise(40, 64, 9))
    assert len(opened("aligned", tmp_path, phase="test")) == 1
    assert len(opened("aligned", tmp_path).preview(9)[0]) == 1


def test_single_folder(root):
    data = opened("single", root / "trainA", phase="test", input_nc=1)
    assert len(data) == 3
    for number, path in enumerate(sorted((root / "trainA").iterdir())):
        assert same(data.item(number), (whole(path, channels=1),))


def test_single_image_is_a_hundred_thousand_crops(tmp_path):
    for name in ("trainA", "trainB"):
        save(tmp_path / name / "x.png", noise(120, 160, len(name)))
    data = opened("singleimage", tmp_path, preprocess="zoom_and_patch", batch_size=4)
    assert len(data) == 100_000
    items = [data.item(number) for number in range(8)]
    assert all(a.shape == b.shape == (3, 32, 32) for a, b in items) and same(data.item(5), items[5])
    assert len({image.sum().item() for item in items for image in item}) == 16
    assert same([image[1] for image in data.preview(2)], items[1])
    test = opened("singleimage", tmp_path, preprocess="zoom_and_patch", phase="train")
    assert not same(test.item(1), items[1])  # of another batch
    save(tmp_path / "testA" / "x.png", noise(50, 62))
    save(tmp_path / "testB" / "x.png", noise(50, 62))
    test = opened("singleimage", tmp_path, preprocess="zoom_and_patch", phase="test")
    assert len(test) == 1 and test.item(0)[0].shape == (3, 48, 64)
    save(tmp_path / "trainB" / "y.png", noise(120, 160))
    with pytest.raises(UsageError, match="trainB: exactly one image wanted, found 2"):
        opened("singleimage", tmp_path)


def test_a_batch_has_one_zoom_and_patches_of_different_places(tmp_path):
    """A gradient tells where a patch is from and how much it was zoomed."""
    down, across = np.mgrid[:250, :250].astype(np.uint8)
    for name in ("trainA", "trainB"):
        save(tmp_path / name / "x.png", np.stack([down, across, across], axis=-1))
    data = opened("singleimage", tmp_path, preprocess="zoom_and_patch", batch_size=8, flip=False)
    zooms = []
    for batch in range(8):
        items = [data.item(8 * batch + i) for i in range(8)]
        of_batch = []
        for patches in zip(*items):
            patches = [(patch + 1) * 127.5 for patch in patches]
            steps = np.array([[p[0, 28, 9] - p[0, 4, 9], p[1, 9, 28] - p[1, 9, 4]] for p in patches]) / 24
            # pixels of the picture per pixel of the patch: 1 unzoomed to 3 at a third; 8 bits, rounded, over 24 pixels
            assert np.ptp(steps, axis=0).max() < 0.1 and 0.95 < steps.min() and steps.max() < 3.1
            of_batch.append(steps.mean(0))
            cells = int(min(250 / steps[0]) // 32) ** 2  # at least
            middles = [tuple(p[:2, 16, 16].round().tolist()) for p in patches]
            assert len(set(middles)) >= min(8, cells)
        zooms += of_batch
    zooms = np.array(zooms)
    assert len(np.unique(zooms.round(1), axis=0)) >= 14 and np.ptp(zooms) > 1  # each batch and side has its own,
    assert np.abs(zooms[:, 0] - zooms[:, 1]).max() > 0.5  # and each axis
