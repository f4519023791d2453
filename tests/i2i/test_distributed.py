"""torchrun with two processes on one CPU: one model, and the step that one process would take on both their images."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from i2i.__main__ import main

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests/support"
TINY = ["crop_size=32", "ngf=4", "ndf=4", "sample_every=100", "n_epochs=1", "n_epochs_decay=0"]
SETTINGS = {
    "cut": ["generator=resnet_5blocks", "num_patches=16"],
    "cyclegan": ["generator=resnet_1blocks"],  # 6 steps do not fill the image pool, whose answers are drawn
    "munit": ["num_scales=2", "style_dim=2", "mlp_dim=8", "n_res=1"],
}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def torchrun(*words: object) -> str:
    """What two processes of `i2i train` print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(SUPPORT / "train_child.py"), "train", "--device", "cpu", *map(str, words)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Forks:
    """The same without torchrun, and without an import of torch for every process: see support/train_forks.py."""

    def __init__(self, folder: Path):
        self.folder = folder
        command = [sys.executable, str(SUPPORT / "train_forks.py")]
        self.process = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def _ask(self, request: list | None) -> list[int]:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, processes: int, *words: object) -> list[int]:
        """Their process ids."""
        return self._ask([processes, ["--device", "cpu", *map(str, words)]])

    def wait(self) -> list[int]:
        """Their exit statuses."""
        return self._ask(None)

    def run(self, processes: int, *words: object) -> list[int]:
        self.start(processes, *words)
        return self.wait()

    def error(self, rank: int = 0) -> str:
        return (self.folder / f"{rank}.err").read_text()

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def forks(tmp_path):
    made = Forks(tmp_path)
    yield made
    made.close()


def losses(folder: Path) -> list[dict[str, float]]:
    with open(folder / "losses.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "method", ["cut", *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS if name != "cut")]
)
def test_two_processes_are_one_of_twice_the_batch(tmp_path, method, one_thread):
    words = ["--method", method, *TINY, *SETTINGS[method], "steps=6", "save_every=3"]
    printed = torchrun(*words, "--output", tmp_path / "two", "batch_size=1")
    assert main(["train", "--device", "cpu", *words, "--output", str(tmp_path / "one"), "batch_size=2"]) == 0
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


def test_two_processes_stop_at_one_step_and_resume(tmp_path, forks):
    """A signal that reaches one process stops both after the same step; the resumed run is the uninterrupted one."""
    words = ["--method", "cut", *TINY, *SETTINGS["cut"], "steps=8", "save_every=4", "ema=0.9"]
    assert forks.run(2, *words, "--output", tmp_path / "whole") == [0, 0], forks.error()
    endless = ["n_epochs=100000" if word == "n_epochs=1" else word for word in words if word != "steps=8"]
    _, second = forks.start(2, *endless, "--output", tmp_path / "parts")
    deadline = time.monotonic() + 120
    while not (tmp_path / "parts" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(second, signal.SIGINT)
    assert forks.wait() == [128 + signal.SIGINT] * 2
    done = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"]
    assert losses(tmp_path / "parts")[-1]["step"] == done
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "parts")[:8] == whole[:done]
    last = max(done + 2, 8)
    assert forks.run(2, "--resume", tmp_path / "parts", f"steps={last}") == [0, 0], forks.error()
    assert losses(tmp_path / "parts")[:8] == whole and len(losses(tmp_path / "parts")) == last
    # refused in the first process, none waits for it
    assert 0 not in forks.run(2, *words, "--output", tmp_path / "parts")
    assert "holds a run already: go on with --resume" in forks.error()
    assert forks.run(1, "--resume", tmp_path / "parts", f"steps={last + 1}") == [2]
    assert "trained by 2 processes and goes on exactly only with as many, got 1" in forks.error()
