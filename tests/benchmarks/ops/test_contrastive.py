"""The contrastive benchmarks: every contestant computes its case, wrong ones get no number, files and summary."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks.engine import suite
from benchmarks.engine.gate import Gate
from benchmarks.ops import contrastive, contrastive_cases
from benchmarks.ops.contrastive import SUITE
from benchmarks.ops.contrastive_cases import EAGER, FUSED, NAMES, Case, Work, cases, products_flops, work

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_maps(monkeypatch):
    monkeypatch.setattr(contrastive_cases, "CUT_MAPS", ((3, 9, 8), (5, 6, 7), (4, 5, 5), (4, 5, 5), (4, 5, 5)))


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Case:
    # with very few patches a loss is near 0, where bfloat16 has no digits: the published form is no measure then
    patches = 64 if dtype == torch.bfloat16 and name.startswith("patch_nce") else 12
    return Case(name, 2, patches, dtype, bank=20 * patches // 12 if name == "patch_nce_bank" else 0)


@pytest.mark.parametrize(
    "name, dtype",
    [(n, d) for n in NAMES for d in (torch.float32, torch.bfloat16) if (n, d) != ("monce_log_weight", torch.bfloat16)],
)
def test_every_contestant_computes_its_case(name, dtype):  # MoNCE's weights are measured in float32 only
    for row in suite.run(SUITE, [tiny(name, dtype)], CPU, rounds=1):
        assert {EAGER, FUSED} <= row["providers"].keys()
        for provider, result in row["providers"].items():
            assert result["status"] == "ok", (provider, row["label"], row["mode"], result)
            assert result["median_ms"] > 0 and result["peak_bytes"] >= 0
            assert (provider == FUSED) != ("fused_speedup" in result)


def test_gradients_are_judged():
    case = tiny("patch_nce")
    given = work(case, CPU)
    gate = Gate(case.label, case.dtype, given)
    assert len(gate.limits) == 2  # the loss, the gradient of q

    def half(q, k):
        return [y / 2 + y.detach() / 2 for y in given.contestants[FUSED].function(q, k)]

    verdict = gate.judge(given.copied().call(half, True))
    assert not verdict.passed and verdict.reason.startswith("result 1")


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
    chosen = SUITE._replace(cases=lambda full, names, shapes: [tiny(n) for n in NAMES if n in names])
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
    real = cli.run

    def interrupted(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "SUITES", (SUITE._replace(cases=lambda full, names, shapes: [tiny("patch_nce")]),))
    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["--op", "patch_nce", "--rounds", "1", "--device", "cpu", "--output", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "contrastive.json").read_text())
    assert result["interrupted"] and len(result["rows"]) == 1
