"""The contrastive benchmarks: every contestant computes its case, wrong ones get no number, files and summary."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks.engine import suite, suite_report
from benchmarks.ops import contrastive, contrastive_cases
from benchmarks.ops.contrastive import SUITE
from benchmarks.ops.contrastive_cases import EAGER, FUSED, NAMES, Case, Work, cases, products_flops, work

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("benchmarks.engine.measure.MIN_SAMPLE_MS", 0.2)
    monkeypatch.setattr("kernels.keep_freed_memory", lambda: False)  # it would last for all tests of this process
    monkeypatch.setattr(contrastive_cases, "CUT_MAPS", ((3, 9, 8), (5, 6, 7), (4, 5, 5), (4, 5, 5), (4, 5, 5)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Case:
    return Case(name, 2, 12, dtype, bank=20 if name == "patch_nce_bank" else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_contestant_computes_its_case(name, dtype):
    if name == "monce_log_weight" and dtype == torch.bfloat16:
        pytest.skip("measured in float32 only")
    for row in suite.run(SUITE, [tiny(name, dtype)], CPU, rounds=1):
        assert {EAGER, FUSED} <= row["providers"].keys()
        for provider, result in row["providers"].items():
            assert result["status"] == "ok", (provider, row["label"], row["mode"], result)
            assert result["median_ms"] > 0 and result["peak_bytes"] >= 0
            assert (provider == FUSED) != ("fused_speedup" in result)


def test_a_wrong_contestant_fails_without_a_number():
    def wrong(case, device):
        given = work(case, device)
        right = given.contestants[FUSED]

        def off(*tensors):
            return [y * 1.01 for y in right(*tensors)]

        return given._replace(contestants={EAGER: given.contestants[EAGER], FUSED: off})

    rows = list(suite.run(SUITE._replace(work=wrong), [tiny("patch_nce")], CPU, rounds=1))
    assert all(row["providers"][FUSED]["status"] == "FAIL" for row in rows)
    assert not any("median_ms" in row["providers"][FUSED] for row in rows)
    summary = suite_report.summarise(SUITE, rows)
    assert len(summary["failures"]) == 2 and "result 0" in summary["failures"][0]["reason"]


def test_gradients_are_judged():
    given = work(tiny("patch_nce"), CPU)
    exact, limits = suite.judged_by(tiny("patch_nce"), given)
    assert len(exact) == len(limits) == 2  # the loss, the gradient of q

    def half(q, k):
        return [y / 2 + y.detach() / 2 for y in given.contestants[FUSED](q, k)]

    verdict = suite.judge(given.copied(), half, True, exact, limits)
    assert verdict["status"] == "FAIL" and verdict["reason"].startswith("result 1")


def test_work_is_the_same_in_every_process():
    a, b = work(tiny("patch_nce_bank"), CPU), work(tiny("patch_nce_bank"), CPU)
    assert isinstance(a, Work) and all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors))


def test_flops():
    case = Case("patch_nce_bank", 4, 256, torch.float32, 1024)
    assert products_flops(case, False) == 2 * 4 * 256 * 1024 * 256
    assert products_flops(case, True) == 2 * products_flops(case, False)
    assert products_flops(tiny("cut_path"), True) == 0


def test_full_covers_what_is_documented():
    everything = cases(full=True)
    losses = {(c.batch, c.patches) for c in everything if c.name == "patch_nce"}
    assert losses == {(b, p) for b in (1, 4, 16) for p in (64, 256, 1024, 4096)}
    assert {c.bank for c in everything if c.name == "patch_nce_bank"} == {1024, 4096, 16384, 65536}
    assert {c.name for c in cases(full=False)} == set(NAMES)


def test_command_line(monkeypatch, tmp_path, capsys):
    chosen = SUITE._replace(cases=lambda full, names: [tiny(n) for n in NAMES if n in names])
    monkeypatch.setattr(cli, "SUITES", (chosen,))
    point = {"bank": 64, "peak_bytes": 2**20, "logits_bytes": 2**19}
    curve = [point | {"provider": name} for name in (EAGER, FUSED)]
    monkeypatch.setattr(contrastive, "memory_curve", lambda device, full: curve)
    asked = ["patch_nce", "patch_nce_bank", "tap_patches"]
    arguments = [*(word for name in asked for word in ("--op", name)), "--rounds", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
    names = ["contrastive.json", "contrastive.md", "contrastive.png", "contrastive_memory.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    result = json.loads((tmp_path / "contrastive.json").read_text())
    assert [row["operator"] for row in result["rows"]] == ["patch_nce"] * 2 + ["patch_nce_bank"] * 2 + ["tap_patches"]
    text = (tmp_path / "contrastive.md").read_text()
    assert "## patch_nce" in text and "2x12 float32" in text
    assert "fused is so many times faster" in capsys.readouterr().out


@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib's, of a picture with nothing in it
def test_interruption_keeps_whole_rows(monkeypatch, tmp_path):
    real = cli.run_suite

    def interrupted(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "SUITES", (SUITE._replace(cases=lambda full, names: [tiny("patch_nce")]),))
    monkeypatch.setattr(cli, "run_suite", interrupted)
    assert cli.main(["--op", "patch_nce", "--rounds", "1", "--device", "cpu", "--output", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "contrastive.json").read_text())
    assert result["interrupted"] and len(result["rows"]) == 1
