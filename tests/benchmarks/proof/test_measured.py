"""The parts that measure in a child: operators, launches, training; here in this process."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

from benchmarks.engine.measure import Kernel
from benchmarks.engine.work import FUSED
from benchmarks.ops import contrastive, norm, resample
from benchmarks.ops.contrastive_cases import PRODUCT
from benchmarks.proof import launches, operators, training
from benchmarks.proof.part import Asked, NotHere, OutOfTime
from benchmarks.prove import PARTS
from i2i.errors import UsageError

CPU = torch.device("cpu")
TINY = {"shapes": [(2, 3, 9, 7)], "ops": ["instance_norm_relu"], "rounds": 1, "compile": False}


class Answers:
    """What a child writes into."""

    def __init__(self):
        self.found: dict = {}

    def row(self, to, row):
        self.found.setdefault(to, []).append(row)

    def set(self, **facts):
        self.found |= facts


def asked(sizes: dict, tmp_path: Path, seconds: float = 600.0) -> Asked:
    return Asked(CPU, time.monotonic() + seconds, tmp_path, sizes)


# ---- operators -------------------------------------------------------------------------------------------------------


def test_the_selection_of_a_gpu_has_what_the_targets_speak_of():
    chosen = [
        (suite.name, case) for suite, group in operators.cases(PARTS["operators"].sizes["cuda"]) for case in group
    ]
    labels = [case.label for _, case in chosen]
    assert len(labels) == len(set(labels))
    assert {case.name for _, case in chosen} == {
        name for suite in (norm.SUITE, contrastive.SUITE, resample.SUITE) for name in suite.operators
    }
    large = [case for name, case in chosen if name == "ops" and math.prod(case.shape) * case.dtype.itemsize > 64e6]
    assert len(large) == 14 and {case.op.kernel for case in large} == {op.kernel for op in norm.OPERATORS}
    assert labels.index("patch_nce_layers 5 layers 1x256 bfloat16") < 20
    compiled = [case.label for _, case in chosen if case.compiled]
    assert len(compiled) == 5  # of eleven functions and modes: some five seconds each
    for words in ("instance_norm_relu ", "instance_norm_residual", "relu_pad", "patch_nce_layers", "blur_downsample"):
        assert any(words in label for label in compiled)


def test_torch_compile_and_the_best_stock_code_are_contestants_on_a_gpu():
    group = [case for _, group in operators.cases(PARTS["operators"].sizes["cuda"]) for case in group if case.compiled]
    for case in group:
        suite = norm.SUITE if hasattr(case, "op") else resample.SUITE if hasattr(case, "padding") else contrastive.SUITE
        if math.prod(getattr(case, "shape", (1,))) < 2e6:  # quickly made
            names = suite.work(case, CPU).contestants.keys()
            assert any(name.startswith("torch.compile") for name in names)
            assert names & {norm.CAREFUL, PRODUCT, resample.CAREFUL}


def test_rows_are_measured_in_order(tmp_path):
    out = Answers()
    operators.measure(asked(TINY, tmp_path), out)
    rows = out.found["rows"]
    assert [row["suite"] for row in rows] == ["ops"] * 4 + ["contrastive"] * 2 + ["resample"] * 2
    assert all(operators.fused_is_right(row) for row in rows)
    assert operators.summary(out.found).keys() == {"ops", "contrastive", "resample"}


def test_operators_end_with_their_time(tmp_path):
    out = Answers()
    with pytest.raises(OutOfTime, match="1 of 8 rows were measured"):
        operators.measure(asked(TINY, tmp_path, seconds=0), out)
    assert len(out.found["rows"]) == 1


def test_a_wrong_fused_result_fails_the_part(monkeypatch):
    rows = [
        {"label": "a 1x2", "mode": "fwd", "providers": {FUSED: {"status": "ok"}}},
        {"label": "b 1x2", "mode": "fwd+bwd", "providers": {FUSED: {"status": "FAIL"}}},
        {"label": "c 1x2", "mode": "fwd", "error": "OutOfMemoryError: ", "providers": {}},
    ]
    monkeypatch.setattr(operators, "measured_apart", lambda name, asked, found: found.update(rows=rows))
    with pytest.raises(AssertionError, match="2 rows in which fused is wrong.*: b 1x2 fwd.bwd, c 1x2 fwd"):
        operators.run(None, {})


# ---- launches --------------------------------------------------------------------------------------------------------


def test_launches(tmp_path):
    out = Answers()
    launches.measure(asked({"repeats": 1}, tmp_path), out)
    calls = {(row["name"], row["what"]): row for row in out.found["calls"]}
    assert (launches.FIVE, launches.BOTH) in calls and ("norm", "launcher, backward") in calls
    assert all(row.keys() == {"name", "what", "host_us"} and 0 < row["host_us"] < 1e6 for row in calls.values())
    assert out.found["impl"] == "cpu" and 0 < out.found["fill_us"] < 1e3


def test_launches_end_with_their_time(tmp_path):
    with pytest.raises(OutOfTime, match="before torch.empty_like"):
        launches.measure(asked({"repeats": 1}, tmp_path, seconds=-1), Answers())


def test_kernels_of_a_call_are_those_of_the_second_time(monkeypatch):
    """The profiler may miss some of the first."""
    seen = iter([[], [Kernel("kernel", 3.0), Kernel("Memset (Device)", 1.0)]])
    monkeypatch.setattr(launches, "device_kernels", lambda call, device: next(seen))
    assert launches.device_side(lambda: None, CPU) == {"launches": 2, "kernels": ["kernel", "Memset (Device)"]}
    monkeypatch.setattr(launches, "device_kernels", lambda call, device: [])
    assert launches.device_side(lambda: None, CPU) == {}


def test_on_a_device_kernels_are_counted_and_waited_for(monkeypatch, tmp_path):
    waits = []
    monkeypatch.setattr(launches, "public", lambda device: [launches.Timed("a", launches.FORWARD, lambda: None)])
    monkeypatch.setattr(launches, "launchers", lambda device: [])
    monkeypatch.setattr(launches, "device_kernels", lambda call, device: [Kernel("k", 1.0)])
    monkeypatch.setattr(launches, "fill_microseconds", lambda device: 2.5)
    monkeypatch.setattr(launches.backends, "choose", lambda impl, x: "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    out, cuda = Answers(), torch.device("cuda")
    launches.measure(asked({"repeats": 2}, tmp_path)._replace(device=cuda), out)
    (row,) = out.found["calls"]
    assert row["launches"] == 1 and out.found["impl"] == "cuda" and waits == [cuda] * 4


# ---- training --------------------------------------------------------------------------------------------------------

RUN = {"generator": "resnet_5blocks", "ngf": 4, "ndf": 4, "num_patches": 16, "crop_size": 32}


def test_a_run_of_the_trainer(tmp_path):
    out = Answers()
    sizes = {"precisions": ["float32"], "steps": 2, "settings": RUN}
    training.measure(asked(sizes, tmp_path), out)
    (row,) = out.found["runs"]
    assert (row["precision"], row["steps"]) == ("float32", 2) and "PSNR" in row["metric"]
    assert row["rise"] == row["end"] - row["start"] and "G_GAN" in row["last_losses"]


def test_a_run_that_does_not_learn_fails(monkeypatch, tmp_path):
    runs = [{"precision": "float32", "rise": 5.0}, {"precision": "bfloat16", "rise": math.nan}]
    monkeypatch.setattr(training, "measured_apart", lambda name, asked, found: found.update(runs=runs))
    with pytest.raises(AssertionError, match="rose in bfloat16 by nan dB, want 3 dB"):
        training.run(asked({}, tmp_path), {})


def test_a_run_without_photographs_or_time(monkeypatch, tmp_path):
    def without(*_, **__):
        raise UsageError("the sample photographs come with scikit-image")

    sizes = {"precisions": ["float32"], "steps": 2, "settings": RUN}
    monkeypatch.setattr(training, "train", without)
    with pytest.raises(NotHere, match="come with scikit-image"):
        training.measure(asked(sizes, tmp_path), Answers())
    with pytest.raises(OutOfTime, match="before float32"):
        training.measure(asked(sizes, tmp_path, seconds=-1), Answers())
    monkeypatch.setattr(training, "train", lambda *_, **__: type("Result", (), {"step": 1}))
    with pytest.raises(OutOfTime, match="in float32, after step 1"):
        training.measure(asked(sizes, tmp_path), Answers())
