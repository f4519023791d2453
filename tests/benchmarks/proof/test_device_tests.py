"""The part that runs the tests marked gpu: which it selects, what it makes of their results."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.engine import machine
from benchmarks.proof import device_tests, processes
from benchmarks.proof.part import Asked, NotHere, OutOfTime

PLANTED = """
import pytest, time
pytestmark = pytest.mark.gpu

def test_passes(): pass
def test_fails(): assert 1 == 2, "one is not two"
def test_skipped(): pytest.skip("no second device")
@pytest.fixture
def broken(): raise ValueError("no memory")
def test_error(broken): pass
@pytest.mark.slow
def test_slow(): raise SystemError
@pytest.mark.triton
def test_triton(): pass
"""


def run(tmp_path: Path, text: str, seconds: float = 120.0) -> dict:
    """What the part finds in one file of tests."""
    file = tmp_path / "test_planted.py"
    file.write_text(text)
    found: dict = {}
    asked = Asked(torch.device("cpu"), time.monotonic() + seconds, tmp_path, {"paths": [file], "workers": 1})
    try:
        device_tests.run(asked, found)
    except Exception as error:
        found["raised"] = error
    return found


def test_counts_and_names_of_failures(tmp_path, monkeypatch):
    monkeypatch.setenv("KERNELS_IMPL", "reference")  # would take them past what is to be tested
    planted = PLANTED + 'def test_environment():\n    import os\n    assert "KERNELS_IMPL" not in os.environ\n'
    found = run(tmp_path, planted)
    cuda, triton = found["runs"]["CUDA"], found["runs"]["Triton"]
    assert (cuda["passed"], cuda["failed"], cuda["skipped"]) == (2, 2, 1)
    assert (triton["passed"], triton["failed"], triton["skipped"]) == (1, 0, 0)
    assert [f["test"].rpartition("::")[2] for f in cuda["failures"]] == ["test_fails", "test_error"]
    assert "one is not two" in cuda["failures"][0]["why"] and "no memory" in cuda["failures"][1]["why"]
    assert isinstance(found["raised"], AssertionError) and str(found["raised"]) == "CUDA: 2 failed"


@pytest.mark.slow
def test_what_was_tested_before_the_end_of_the_time_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 5.0)
    slow = PLANTED.replace("def test_fails(): assert 1 == 2", "def test_fails(): time.sleep(60); assert 1 == 2")
    found = run(tmp_path, slow, seconds=12.0)
    assert isinstance(found["raised"], OutOfTime) and "within the tests of CUDA" in str(found["raised"])
    assert found["runs"]["CUDA"]["passed"] == 1 and found["runs"].keys() == {"CUDA"}


def test_no_test_at_all_is_a_failure(tmp_path):
    found = run(tmp_path, "def test_of_a_cpu(): pass")
    assert isinstance(found["raised"], RuntimeError) and "CUDA: pytest ended with status 5" in str(found["raised"])


def test_without_a_checkout_or_pytest(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    asked = Asked(torch.device("cpu"), time.monotonic() + 60, tmp_path, {"paths": ["tests"], "workers": 1})
    with pytest.raises(NotHere, match="a checkout of the repository"):
        device_tests.run(asked, {})
    (tmp_path / "tests" / "kernels").mkdir(parents=True)
    monkeypatch.setattr(device_tests.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotHere, match="pytest is not installed"):
        device_tests.run(asked, {})


def test_a_report_that_is_not_there_or_cut_off(tmp_path):
    nothing = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    assert device_tests.read(tmp_path / "none.xml") == nothing
    (tmp_path / "cut.xml").write_text("<testsuites><testsuite><testcase")
    assert device_tests.read(tmp_path / "cut.xml") == nothing


@pytest.mark.slow
def test_selection_on_a_machine_with_a_gpu(forked):
    """The cases of the emulation and of the interpreter, each in its run; and files that only a GPU can run."""
    code = """
import sys, pytest, torch
torch.cuda.is_available = lambda: True
from benchmarks.proof.device_tests import RUNS
for selection in RUNS.values():
    pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-m", selection, "tests/kernels/patches"])
    print("----")
"""
    environment = {"TRITON_INTERPRET": "0", "KERNELS_CUDA_DRIVER": ""}
    cuda, triton, _ = forked(code, **environment).stdout.split("----")
    assert "test_device.py::" in cuda and "test_gpu.py::" in cuda and "triton" not in cuda.replace("test_triton", "")
    assert "test_device.py::" in triton and "test_gpu.py::" not in triton
    assert "test_op.py" not in cuda + triton and "test_triton_offline" not in cuda + triton
