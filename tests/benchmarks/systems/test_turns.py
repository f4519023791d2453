"""Contestants in processes: that are late, that die; and how one is warmed and sampled on a GPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.engine.measure import Kernel
from benchmarks.systems import child, turns
from benchmarks.systems.child import BLOCK, WARM, Child, kernel_share
from benchmarks.systems.turns import LATE, Process


@pytest.fixture
def process(tmp_path):
    """process(code): a contestant's process that runs it."""
    made = []

    def make(code: str) -> Process:
        found = Process.__new__(Process)
        found.log = tmp_path / "log"
        with open(found.log, "w") as log:
            found.process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        made.append(found)
        return found

    yield make
    for each in made:
        each.close()


def test_answers_and_errors(process):
    code = """
import sys
for line in sys.stdin:
    print('{"seconds": 1}' if line.strip() == '["step"]' else '{"error": "no"}', flush=True)
"""
    contestant = process(code)
    contestant.send("step")
    assert contestant.receive(math.inf) == {"seconds": 1}
    contestant.send("peak")
    with pytest.raises(RuntimeError, match="no"):
        contestant.receive(time.monotonic() + 60)


def test_one_that_takes_too_long(process):
    contestant = process("import time; time.sleep(60)")
    contestant.send("first")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=LATE):
        contestant.receive(began + 0.3)
    assert 0.3 <= time.monotonic() - began < 20
    with pytest.raises(RuntimeError, match=LATE):
        contestant.receive(began)  # a time that is over


def test_one_that_dies(process):
    contestant = process("import sys; print('libcudnn: not found', file=sys.stderr)")
    contestant.process.wait()
    contestant.send("first")  # into a pipe that nobody reads
    with pytest.raises(RuntimeError, match="its process ended: libcudnn: not found"):
        contestant.receive(math.inf)


# ---- the child on a GPU ----------------------------------------------------------------------------------------------


class Model:
    device = torch.device("cuda")
    steps = 0

    def step(self, *batch):
        self.steps += 1
        return {}


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7)
    return Child(Model(), (), 3)


def test_a_gpu_is_warmed_and_sampled_in_blocks(on_gpu):
    on_gpu.model.graphs = SimpleNamespace(report=lambda: ["batch 1: recorded"])
    assert on_gpu.warm() == {"graphs": ["batch 1: recorded"]}
    assert on_gpu.model.steps == 3 * WARM["cuda"] and WARM["cuda"] > 4
    assert on_gpu.step()["seconds"] >= 0
    assert on_gpu.model.steps == 3 * (WARM["cuda"] + BLOCK["cuda"])
    assert on_gpu.peak() == {"peak_bytes": 5, "reserved_bytes": 7}


def test_the_step_that_is_compared_is_exact_in_float32(tmp_path):
    seen = []

    class Exact(Model):
        device, networks = torch.device("cpu"), {}

        def step(self, *batch):
            seen.append(torch.backends.cudnn.allow_tf32)
            return {"G": torch.ones(())}

    mine = Child(Exact(), (), 1)
    before = torch.backends.cudnn.allow_tf32
    assert mine.first(str(tmp_path / "gradients"))["losses"] == {"G": 1.0}
    mine.step()
    assert seen == [False, before] and torch.backends.cudnn.allow_tf32 == before


def test_a_cpu_is_not():
    model = Model()
    model.device = torch.device("cpu")
    mine = Child(model, (), 2)
    assert mine.warm() == {} and model.steps == 0
    mine.step()
    assert model.steps == 2


def test_the_share_of_a_gpu_is_of_what_it_ran(on_gpu, monkeypatch):
    ran = [
        Kernel("sm90_xmma_fprop_implicit_gemm", 3000.0),
        Kernel("cudnn::wgrad", 3000.0),
        Kernel("kernel", 1000.0),
        Kernel("Memcpy DtoD", 2000.0),
        Kernel("elementwise", 3000.0),
        Kernel("multi_tensor", 0.0),
    ]

    def device_kernels(call, device):
        call()
        return ran

    monkeypatch.setattr(child, "device_kernels", device_kernels)
    found = json.loads(json.dumps(on_gpu.share()))
    assert on_gpu.model.steps == 3
    assert found == {
        "outside_convolutions": pytest.approx(0.5),
        "convolutions_s": pytest.approx(0.002),
        "device_s": pytest.approx(0.004),
        "launches": 2,
    }
    assert kernel_share([], 1) == {}  # a profiler that sees nothing


def test_caches_of_compilers_are_new(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with turns.scratch() as folder:
        assert turns.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder) and not list(folder.iterdir())
    assert not folder.exists()
