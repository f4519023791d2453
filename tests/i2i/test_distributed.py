"""torchrun with two processes on one CPU: one model, and the step that one process would take on both their images."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "tests/support/train_child.py"
TINY = ["crop_size=32", "ngf=4", "ndf=4", "sample_every=100", "n_epochs=1", "n_epochs_decay=0"]
SETTINGS = {
    "cut": ["generator=resnet_5blocks", "num_patches=16"],
    "cyclegan": ["generator=resnet_1blocks"],  # 6 steps do not fill the image pool, whose answers are drawn
    "munit": ["num_scales=2", "style_dim=2", "mlp_dim=8", "n_res=1"],
}


def start(processes: int, *words: object) -> subprocess.Popen:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [str(CHILD), "train", "--device", "cpu", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


def losses(folder: Path) -> list[dict[str, float]]:
    with open(folder / "losses.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "method", ["cut", *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS if name != "cut")]
)
def test_two_processes_are_one_of_twice_the_batch(tmp_path, method):
    words = ["--method", method, *TINY, *SETTINGS[method], "steps=6", "save_every=3"]
    printed = finish(start(2, *words, "--output", tmp_path / "two", "batch_size=1"))
    finish(start(1, *words, "--output", tmp_path / "one", "batch_size=2"))
    assert printed.count("checkpoint:") == 1  # only the first process speaks
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, state in ranks[0].items():
        for key, tensor in state.items():
            assert torch.equal(tensor, ranks[1][name][key]), f"{name} {key}"
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(two) == len(one) == 6
    for a, b in zip(two, one):
        # 1e-6 at the first step; Adam's steps then spread what rounding leaves of gradients that are zero
        assert a == pytest.approx(b, rel=2e-5 if a["step"] == 1 else 2e-3, abs=1e-6), a["step"]
    assert all(two[-1][name] != two[0][name] for name in two[0])  # it trains


def test_two_processes_stop_at_one_step_and_resume(tmp_path):
    """A signal that reaches one process stops both after the same step; the resumed run is the uninterrupted one."""
    words = ["--method", "cut", *TINY, *SETTINGS["cut"], "steps=8", "save_every=4", "ema=0.9"]
    finish(start(2, *words, "--output", tmp_path / "whole"))
    endless = ["n_epochs=100000" if word == "n_epochs=1" else word for word in words if word != "steps=8"]
    process = start(2, *endless, "--output", tmp_path / "parts")
    deadline = time.monotonic() + 120
    while not (tmp_path / "parts" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    done = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"]
    assert losses(tmp_path / "parts")[-1]["step"] == done
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts")[:8] == whole[:done]
    last = max(done + 2, 8)
    finish(start(2, "--resume", tmp_path / "parts", f"steps={last}"))
    assert losses(tmp_path / "parts")[:8] == whole and len(losses(tmp_path / "parts")) == last
    again = start(2, *words, "--output", tmp_path / "parts")  # refused in the first process, none waits for it
    _, err = again.communicate(timeout=120)
    assert again.returncode and "holds a run already: go on with --resume" in err
    one = start(1, "--resume", tmp_path / "parts", f"steps={last + 1}")
    _, err = one.communicate(timeout=120)
    assert one.returncode == 2 and "trained by 2 processes and goes on exactly only with as many, got 1" in err
