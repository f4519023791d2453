"""Files are written whole or not at all, and a full disk is told."""

import errno
import os
from pathlib import Path

import pytest
import torch
from support.image_folders import tree

from i2i.errors import UsageError
from i2i.files import replacing, write_atomically

ROOT = Path(__file__).parents[2]


def test_what_did_not_reach_the_disk_replaces_nothing(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="x: cannot be written"):
        write_atomically(tmp_path / "x", b"new, half written")
    assert tree(tmp_path) == {"x": b"old"}


def test_an_output_that_cannot_be_written_is_told_by_its_own_name(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("before")
    with pytest.raises(OSError, match="folder is a folder, where a file is to be written$"):
        write_atomically(tmp_path / "folder", b"x")
    with pytest.raises(UsageError, match="file cannot be a folder to write into"):
        write_atomically(tmp_path / "file" / "x", b"x")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "whatever.tmp")

    with pytest.raises(OSError) as caught, replacing(tmp_path / "file"):
        full()
    assert str(caught.value) == (
        f"{tmp_path / 'file'}: cannot be written (No space left on device); the file that was there is unchanged"
    )
    assert caught.value.errno == errno.ENOSPC and tree(tmp_path) == {"file": b"before"}


@pytest.mark.slow  # a process that imports torch; other full disks are met by the trainer's tests
def test_torchs_own_writer_on_a_full_disk(tmp_path, forked):
    """Which raises a RuntimeError that says nothing."""
    torch.save({"a": torch.zeros(3)}, tmp_path / "x.pth")
    before = (tmp_path / "x.pth").read_bytes()
    code = (
        "import resource, signal, torch; from pathlib import Path; from i2i.files import replacing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try:\n"
        "    with replacing(Path('x.pth')) as temporary:\n"
        "        torch.save({'a': torch.zeros(10000)}, temporary)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = forked(code, tmp_path)
    assert done.stdout.startswith("x.pth: cannot be written (") and done.stdout.count("\n") == 1, done.stderr
    assert "the file that was there is unchanged" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"] and (tmp_path / "x.pth").read_bytes() == before
