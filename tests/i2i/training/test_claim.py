"""One run per folder, and no run over another's work."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.tiny_runs import ROOT, TINY, arguments, fails, losses

from i2i import UsageError
from i2i.__main__ import main
from i2i.methods.cut import CUTConfig
from i2i.training import checkpoint, claim
from i2i.training.claim import claimed
from i2i.training.loop import train


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != claim.LOCK}


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path, capsys):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "i2i", *arguments(output=run, steps=100_000, save_every=1)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not (run / "checkpoint.pt").exists() and process.poll() is None:
                time.sleep(0.05)
            held = f"another run is writing into {run} (process {process.pid} on "
            assert held in fails(capsys, *arguments(output=run))
            assert held in fails(capsys, "train", "--resume", run)
            assert process.poll() is None  # undisturbed
        finally:
            process.send_signal(signal.SIGKILL)
    done = checkpoint.read(run)["step"]
    assert (run / claim.LOCK).exists()
    assert main(["train", "--resume", str(run), f"steps={done + 2}", "--device", "cpu"]) == 0
    assert [row[0] for row in losses(run)[1:]] == [str(step) for step in range(1, done + 3)]
    assert not (run / claim.LOCK).exists()


def test_a_lock_that_is_given_back_between_opening_and_locking(tmp_path, monkeypatch):
    """Its file is gone then: who holds it, holds nothing."""
    lock, first = claim._lock, []

    def late(file):
        if not first:
            first.append(file)
            (tmp_path / claim.LOCK).unlink()
        lock(file)

    monkeypatch.setattr(claim, "_lock", late)
    with claimed(tmp_path, "cut", None), pytest.raises(UsageError, match="another run is writing into"):
        claim._acquire(tmp_path / claim.LOCK)
    assert first


def test_without_locks_it_is_said_and_goes_on(tmp_path, monkeypatch, capsys):
    def none(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claim, "_lock", none)
    with claimed(tmp_path / "run", "cut", None) as folder:
        assert folder.is_dir()
    assert "is on a file system without locks (No locks available)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize(
    "name", ["latest_net_G.pth", "200_net_G_A.pth", "losses.csv", "losses.png", "pictures/step_0000004.png"]
)
def test_a_new_run_overwrites_nothing(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "checkpoints" / "horse2zebra"
    (place / name).parent.mkdir(parents=True)
    (place / name).write_bytes(b"the work of weeks")
    (place / "notes.txt").write_text("by hand")
    before = contents(place)
    words = [word for word in arguments(steps=1) if not word.startswith("output")]
    for given in (["--output", place], ["--name", "horse2zebra"]):
        message = fails(capsys, *words, *given)
        assert f"holds {name.rpartition('/')[2]}, which this run did not write and would overwrite" in message
    with pytest.raises(UsageError, match="would overwrite"):
        train("cut", CUTConfig(**TINY), place)
    assert contents(place) == before


def test_a_folder_with_other_things_or_nothing_of_worth_is_taken(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "losses.csv").touch()  # of a run that was killed at once
    (tmp_path / "notes.txt").write_text("by hand")
    assert main(arguments(output=tmp_path, steps=1)) == 0
    assert (tmp_path / "notes.txt").read_text() == "by hand"


def test_no_run_goes_back_over_a_newer_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    config = CUTConfig(**TINY | {"steps": 2, "save_every": 1})
    train("cut", config, run)
    old = checkpoint.read(run)
    (run / "of_step_2.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    longer = CUTConfig(**TINY | {"steps": 4})
    train("cut", longer, run, resume=old)
    before = contents(run)
    with pytest.raises(UsageError, match="is of step 4 of cut, and going on from step 2 of cut would overwrite it"):
        train("cut", CUTConfig(**TINY | {"steps": 6}), run, resume=old)
    assert "goes on from the checkpoint.pt of its folder" in fails(capsys, "train", "--resume", run / "of_step_2.pt")
    assert contents(run) == before
    other = tmp_path / "other"
    other.mkdir()
    (run / "of_step_2.pt").rename(other / "checkpoint.pt")
    assert main(["train", "--resume", str(other), "steps=4", "--device", "cpu"]) == 0
    assert torch.equal(*(checkpoint.read(each)["networks"]["G"]["model.1.weight"] for each in (run, other)))


def test_two_runs_without_output_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with claimed(None, "cut", None) as first, claimed(None, "cut", None) as second:
        assert (first.name, second.name) == ("cut-1", "cut-2")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("text")
    for output in ("file", "file/run", "file/deeper/run"):
        message = fails(capsys, *arguments(output=tmp_path / output))
        assert f"{tmp_path / output} cannot be a folder to write into: {tmp_path / 'file'} is a file" in message
        assert ".tmp" not in message
    opened = os.open

    def refused(path, *given, **more):
        if str(path).endswith(claim.LOCK):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *given, **more)

    monkeypatch.setattr(os, "open", refused)
    message = fails(capsys, *arguments(output=tmp_path / "run"))
    assert f"{tmp_path / 'run'} cannot be written into (Permission denied)" in message
    assert {path.name for path in tmp_path.iterdir()} == {"file"}
