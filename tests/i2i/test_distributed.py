"""torchrun with two processes on one CPU: one model, and the step that one process would take on both their images."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from i2i.__main__ import main

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests/support"
TINY = ["crop_size=32", "ngf=4", "ndf=4", "sample_every=100", "n_epochs=1", "n_epochs_decay=0"]
SETTINGS = {
    "cut": ["generator=resnet_5blocks", "num_patches=16"],
    # 6 steps do not fill the image pool, whose answers are drawn. At the default lr a rounding grows a thousand times
    # in three steps, to 2.8e-3; at this one it stays below 5e-6 for eight.
    "cyclegan": ["generator=resnet_1blocks", "lr=2e-5"],
    "munit": ["num_scales=2", "style_dim=2", "mlp_dim=8", "n_res=1"],
}
NARROW = {"crop_size": 32, "load_size": 32, "ngf": 4, "ndf": 4}
CUT = NARROW | {"generator": "resnet_5blocks", "num_patches": 8, "feature_width": 8}
CYCLE = NARROW | {"generator": "resnet_1blocks"}
MUNIT = NARROW | {"num_scales": 2, "style_dim": 2, "mlp_dim": 8, "n_res": 1}
STAR = {"crop_size": 32, "g_conv_dim": 4, "d_conv_dim": 4, "g_repeat_num": 1, "d_repeat_num": 4}
HALF = {"precision": "bfloat16"}
BUCKET = 1000  # elements: networks as narrow as these have several of them
QUICK = {
    "cut": ("cut", CUT),
    "cut, bfloat16": ("cut", CUT | HALF),
    "cyclegan": ("cyclegan", CYCLE),
    "munit": ("munit", MUNIT),
}
SLOW = {
    "cut, float16": ("cut", CUT | {"precision": "float16"}),
    "cut, penalty and no contrast": ("cut", CUT | {"gan_mode": "wgangp", "lambda_nce": 0}),
    "cut, past images": ("cut", CUT | {"negatives": "external", "queue_size": 20}),
    "fastcut": ("fastcut", CUT | {"feature_network": "reshape"}),
    "sincut": ("sincut", {"crop_size": 32, "batch_size": 2, "ngf": 4, "ndf": 4}),
    "cyclegan, bfloat16": ("cyclegan", CYCLE | HALF | {"norm": "batch"}),
    "munit, bfloat16": ("munit", MUNIT | HALF | {"recon_x_cyc_w": 1.0}),
    "pix2pix": ("pix2pix", NARROW | {"generator": "unet_32"}),
    "opgan": ("opgan", CYCLE | {"nsf": 4}),
    "opgan, siamese apart": ("opgan", CYCLE | HALF | {"nsf": 4, "register_siamese": False}),
    "stargan": ("stargan", STAR | {"n_critic": 2, "batch_size": 2}),
    "matchgan": ("matchgan", STAR | {"n_critic": 3, "labelled_percentage": 50.0}),
    "discogan": ("discogan", {"ngf": 4, "ndf": 4, "batch_size": 2, "gan_curriculum": 4}),
}
CASES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
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
        """`i2i train` with these words. Their process ids."""
        return self._ask([processes, "train", ["--device", "cpu", *map(str, words)]])

    def wait(self) -> list[int]:
        """Their exit statuses."""
        return self._ask(None)

    def run(self, processes: int, *words: object) -> list[int]:
        self.start(processes, *words)
        return self.wait()

    def call(self, name: str, *arguments: object) -> list[Any]:
        """What a function of support/train_steps.py returns in each of two processes."""
        self._ask([2, name, list(arguments)])
        assert self.wait() == [0, 0], self.error() + self.error(1)
        return [json.loads((self.folder / f"{rank}.out").read_text()) for rank in (0, 1)]

    def error(self, rank: int = 0) -> str:
        return (self.folder / f"{rank}.err").read_text()

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


def losses(folder: Path) -> list[dict[str, float]]:
    with open(folder / "losses.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_two_processes_are_one_of_twice_the_batch(tmp_path, method, one_thread):
    words = ["--method", method, *TINY, *SETTINGS[method], "steps=3", "save_every=2"]
    printed = torchrun(*words, "--output", tmp_path / "two", "batch_size=1")
    assert main(["train", "--device", "cpu", *words, "--output", str(tmp_path / "one"), "batch_size=2"]) == 0
    assert printed.count("checkpoint:") == 1  # only the first process speaks
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, state in ranks[0].items():
        for key, tensor in state.items():
            assert torch.equal(tensor, ranks[1][name][key]), f"{name} {key}"
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert len(two) == len(one) == 3
    for a, b in zip(two, one):
        # 1e-6 at the first step; Adam's steps then spread what rounding leaves of gradients that are zero. Later steps
        # say nothing: CUT in two memory formats is 4e-4, 1.4e-2 and 2e-2 away from itself at steps 4, 5 and 6.
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


@pytest.mark.parametrize("name", CASES)
def test_averaging_meanwhile_gives_the_bits_of_averaging_afterwards(forks, name):
    method, settings = (QUICK | SLOW)[name]
    ranks = forks.call("same_bits", method, settings, BUCKET, 6 if name in SLOW else 3)
    for rank in ranks:
        assert rank["differ"] == [] and rank["compared"] > 100
        meanwhile, afterwards = rank["transfers"]
        assert meanwhile > 3 * afterwards and rank["left"] == 0  # every network's last backward pass was named
        assert rank["total"] == ranks[0]["total"]


def gradients_after(seen: list[list[str]]) -> int:
    return sum(event[0] == "gradient" for event in seen)


@pytest.mark.parametrize("name", CASES)
def test_buckets_leave_while_gradients_are_computed(forks, name):
    """Each as soon as its gradients and those before it allow, and none of them before; in one order everywhere."""
    method, settings = (QUICK | SLOW)[name]
    seen, of_other = forks.call("events", method, settings, BUCKET)
    assert [event for event in seen if event[0] != "gradient"] == [
        event for event in of_other if event[0] != "gradient"
    ]
    overlapped = 0
    while ["end"] in seen:
        begin = next(i for i, event in enumerate(seen) if event[0] == "last")
        end = seen.index(["end"])
        done, seen = seen[begin:end], seen[end + 1 :]
        sends = [i for i, event in enumerate(done) if event[0] == "sent"]
        free = 0  # where the bucket before was sent
        for at in sends:
            own = set(done[at][1:])
            there = max([i for i, (kind, *names) in enumerate(done) if kind == "gradient" and names[0] in own] or [1])
            assert there < at
            between = [names[0] for kind, *names in done[max(there, free) + 1 : at] if kind == "gradient"]
            # of several that were ready already, all go when the first gradient comes
            assert set(between) <= own or there == 1, (own, between)
            free = at
        overlapped += sum(gradients_after(done[at:]) > 0 for at in sends)
    # Of most networks all buckets but one; MUNIT's encoders run in another order than their weights are in.
    sent = sum(event[0] == "sent" for event in of_other)
    assert overlapped >= sent / 3
    first = next(i for i, event in enumerate(of_other) if event[0] == "sent")
    assert gradients_after(of_other[first : of_other.index(["end"])]) > 0


@pytest.mark.parametrize("network", ["D", "G", "F"])
def test_a_gradient_that_changes_after_it_was_sent(forks, network):
    for said in forks.call("planted", "cut", CUT, network):
        assert said.startswith(f"a gradient of {network} changed after it was sent to the other processes: ")


def test_a_process_that_does_something_else_is_noticed(forks):
    """In the time that transfers are given, 30 minutes by torch's default."""
    said, _ = forks.call("one_differs", "cut", CUT, "ends", 60)
    assert "closed by peer" in said
    said, _ = forks.call("one_differs", "cut", CUT, "waits", 2)
    # of the transfers under way, the first one times out, and all others with it
    assert "Timed out waiting 2000ms" in said or "timeout caused pair closure" in said
    forks._ask([2, "one_differs", ["cut", CUT, "fewer", 60]])
    assert forks.wait() != [0, 0]
    assert "Is there a distributed collective mismatch in your code?" in forks.error() + forks.error(1)


@pytest.mark.slow
def test_a_slow_network_is_waited_for_less(forks):
    """With a network that needs a tenth of a step's time, 0.13 s here, CycleGAN waited 0.011 s for it, and 0.159 s when
    it averaged afterwards."""
    settings = {"crop_size": 64, "load_size": 64, "ngf": 16, "ndf": 16}
    ranks = forks.call("waiting", "cyclegan", settings, 50_000, 0.1)
    # The process that the other one waits for has nothing but the network to wait for.
    meanwhile, afterwards = (min(rank[name][0] for rank in ranks) for name in ("meanwhile", "afterwards"))
    (network,) = ranks[0]["network"]
    assert afterwards > 0.9 * network and meanwhile < 0.7 * afterwards, ranks
