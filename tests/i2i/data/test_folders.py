"""Which pictures a folder or a list gives, what is skipped or refused, and what pairs."""

import pytest
import torch
from support.image_folders import CALM, noise, opened, paired, same, save, whole

from i2i.data import list_images
from i2i.errors import UsageError


def test_links_subfolders_and_extensions_in_any_case(tmp_path):
    save(tmp_path / "elsewhere" / "x.PNG", noise(8, 8))
    save(tmp_path / "a" / "deep" / "y.Jpeg", noise(8, 8))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    names = [str(picture.path.relative_to(tmp_path / "a")) for picture in list_images(tmp_path / "a").pictures]
    assert names == ["deep/y.Jpeg", "link/x.PNG"]


def test_list_files(root, tmp_path):
    """In their order, relative to where they lie."""
    (root / "list.txt").write_text("trainA/2.jpg\n\n  trainA/0.png\n" + str(root / "trainB" / "0.png") + "\n")
    names = [picture.path for picture in list_images(root / "list.txt").pictures]
    assert names == [root / "trainA/2.jpg", root / "trainA/0.png", root / "trainB/0.png"]
    (root / "bad.txt").write_bytes(b"GIF\x00")
    with pytest.raises(UsageError, match="bad.txt: neither a picture nor a text file"):
        list_images(root / "bad.txt")
    assert [picture.path for picture in list_images(root / "trainA/0.png").pictures] == [root / "trainA/0.png"]


def test_unreadable_image_is_named_counted_and_left_out(root, capsys):
    (root / "trainA" / "broken.png").write_bytes(b"no picture")
    (root / "list.txt").write_text("trainA/gone.png\ntrainA/0.png")
    assert [picture.path.name for picture in list_images(root / "trainA").pictures] == ["0.png", "1.jpg", "2.jpg"]
    assert len(list_images(root / "list.txt").pictures) == 1
    err = capsys.readouterr().err
    assert "broken.png" in err and "1 of 4 images skipped" in err and "gone.png" in err and "1 of 2 images" in err


def test_folders_that_cannot_be_used(root, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty: no images in it"):
        list_images(empty)
    (empty / "x.png").write_bytes(b"")
    with pytest.raises(UsageError, match="none of its 1 images can be read"):
        list_images(empty)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        opened("unaligned", root / "nowhere")
    with pytest.raises(UsageError, match="nowhere: no such folder of images, nor a file that lists them"):
        opened("single", root / "nowhere")
    with pytest.raises(UsageError, match="has no folder trainA"):
        opened("unaligned", empty)
    with pytest.raises(UsageError, match="has no folder train: put .*side by side"):
        opened("aligned", root)
    for mode in ("unaligned", "aligned", "singleimage"):
        with pytest.raises(UsageError, match="data must be one folder or two, got 3"):
            opened(mode, root, root, root)
    with pytest.raises(UsageError, match="data must be one folder for dataset_mode single, got 2"):
        opened("single", root, root)
    with pytest.raises(UsageError, match="unaligned, aligned, single, singleimage; got alligned .did you mean aligned"):
        opened("alligned", root)


def test_two_folders_pair_by_name(tmp_path):
    data = opened("aligned", *paired(tmp_path))
    assert len(data) == 2
    for number in range(4):
        a, b = data.item(number)
        torch.testing.assert_close(a, -b, atol=2.1 / 127.5, rtol=0)
    a, b = opened("aligned", *paired(tmp_path), direction="BtoA", serial_batches=True, **CALM).item(0)
    assert torch.equal(a, whole(tmp_path / "maps/one.bmp"))


def test_pairs_that_are_none(tmp_path, capsys):
    a, b = paired(tmp_path)
    extra = save(a / "three.png", noise(40, 48))
    with pytest.raises(UsageError, match=r"three.png has no partner in .*maps \(1 of 3 have none\)"):
        opened("aligned", a, b)
    (b / "three.png").write_bytes(b"no picture")  # left out, and its partner with it
    assert len(opened("aligned", a, b)) == 2 and "three.png" in capsys.readouterr().err
    save(b / "three.png", noise(40, 50))
    with pytest.raises(UsageError, match="three.png is 48 x 40 and its partner .*three.png 50 x 40 pixels"):
        opened("aligned", a, b)
    save(a / "three.jpg", noise(40, 48))
    with pytest.raises(UsageError, match="three.jpg and .*three.png have one name"):
        opened("aligned", a, b)
    assert extra.exists()


def test_two_lists_pair_line_by_line(tmp_path):
    a, b = paired(tmp_path)
    (tmp_path / "a.txt").write_text("photos/one.png\nphotos/sub/two.png\n")
    (tmp_path / "b.txt").write_text("maps/sub/two.bmp\nmaps/one.bmp\n")
    data = opened("aligned", tmp_path / "a.txt", tmp_path / "b.txt", serial_batches=True, **CALM)
    assert same(data.item(0), (whole(a / "one.png"), whole(b / "sub/two.bmp")))
    (tmp_path / "b.txt").write_text("maps/one.bmp\n")
    with pytest.raises(UsageError, match="a.txt lists 2 images, .*b.txt 1"):
        opened("aligned", tmp_path / "a.txt", tmp_path / "b.txt")
