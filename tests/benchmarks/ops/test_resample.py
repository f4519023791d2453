"""The resample benchmarks: every contestant computes its case, figures against a copy, files and summary."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import __main__ as cli
from benchmarks.engine import suite
from benchmarks.engine.gate import Gate
from benchmarks.engine.work import EAGER, FUSED
from benchmarks.ops.resample import CAREFUL, DOWN, NAMES, PAD, SUITE, UP, Case, cases, necessary_bytes, work

CPU = torch.device("cpu")


def tiny(name: str, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Case:
    return Case(name, (2, 5, 9, 7), 2 if name == PAD else 0, dtype, channels_last)


def chosen(monkeypatch, *measured: Case) -> None:
    """These instead of the real cases."""
    only = SUITE._replace(cases=lambda full, names, shapes: [case for case in measured if case.name in names])
    monkeypatch.setattr(cli, "SUITES", (only,))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_contestant_computes_its_case(name, dtype, channels_last):
    case = tiny(name, dtype, channels_last)
    form = torch.channels_last if channels_last else torch.contiguous_format
    given = work(case, CPU)
    assert given.tensors[0].is_contiguous(memory_format=form) and given.grads[0].is_contiguous(memory_format=form)
    for row in suite.run(SUITE, [case], CPU, rounds=1):
        careful = name == UP or (name == DOWN and dtype == torch.bfloat16)
        assert set(row["providers"]) == {EAGER, FUSED} | ({CAREFUL} if careful else set())
        assert row["copy"]["gbytes_per_s"] > 0
        for provider, result in row["providers"].items():
            assert result["status"] == "ok", (provider, row["label"], row["mode"], result)
            assert result["median_ms"] > 0 and result["peak_bytes"] > 0 and result["percent_of_copy"] > 0
            assert (provider == FUSED) != ("fused_speedup" in result)


def test_gradients_are_judged():
    case = tiny(DOWN)
    given = work(case, CPU)
    gate = Gate(case.label, case.dtype, given)
    assert len(gate.limits) == 2  # the map, the gradient of x

    def half(x, filt):
        return [y / 2 + y.detach() / 2 for y in given.contestants[FUSED].function(x, filt)]

    verdict = gate.judge(given.copied().call(half, True))
    assert not verdict.passed and verdict.reason.startswith("result 1")


def test_a_compiler_that_crashes_costs_its_cell(monkeypatch):
    def crash(*_):
        raise RuntimeError("no backend")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: crash)
    (row, *_) = suite.run(SUITE, [tiny(UP)._replace(compiled=True)], CPU, rounds=1)
    for name in (EAGER, CAREFUL):
        assert row["providers"][name]["status"] == "ok"
        assert row["providers"][f"torch.compile, {name}"]["reason"] == "RuntimeError: no backend"


def test_skip_of_torch_compile_leaves_out_all_that_it_compiles():
    (row, *_) = suite.run(SUITE, [tiny(UP)._replace(compiled=True)], CPU, 1, ["torch.compile", CAREFUL])
    assert set(row["providers"]) == {EAGER, FUSED}


def test_necessary_bytes():
    plane, planes = 9 * 7, 2 * 5
    assert necessary_bytes(tiny(DOWN), False) == 4 * planes * (plane + 5 * 4)
    assert necessary_bytes(tiny(UP, torch.bfloat16), True) == 2 * 2 * planes * (plane + 18 * 14)
    assert necessary_bytes(tiny(PAD), False) == 4 * planes * (plane + 13 * 11)


def test_selection_and_full():
    selected, everything = cases(full=False), cases(full=True)
    assert {case.name for case in selected} == set(NAMES) and {case.name for case in cases(False, [UP])} == {UP}
    assert all(case.compiled for case in everything) and {c._replace(compiled=True) for c in selected} < set(everything)
    assert any(case.shape[2] % 2 for case in everything) and {case.shape[0] for case in everything} == {1, 4}
    for name in NAMES:
        compiled = [case for case in selected if case.name == name and case.compiled]
        assert len({case.shape for case in compiled}) == 1
        formats = {(case.dtype, case.channels_last) for case in compiled}
        assert formats == {(torch.float32, False), (torch.bfloat16, True)}


def test_command_line(monkeypatch, tmp_path, capsys):
    chosen(monkeypatch, *(tiny(name, torch.bfloat16, True) for name in NAMES))
    arguments = [*(word for name in (DOWN, PAD) for word in ("--op", name)), "--rounds", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resample.json", "resample.md", "resample.png"]
    result = json.loads((tmp_path / "resample.json").read_text())
    assert [row["operator"] for row in result["rows"]] == [DOWN] * 2 + [PAD] * 2
    assert {"shape", "padding", "dtype", "memory_format", "necessary_bytes"} <= result["rows"][0].keys()
    assert f"{PAD} bfloat16 channels_last fwd+bwd" in result["summary"]["speedups"]
    text = (tmp_path / "resample.md").read_text()
    assert "| 2x5x9x7 p2 channels_last bfloat16 | fwd+bwd |" in text and "| % of copy |" in text
    assert f"* **{CAREFUL}**: " in text and "![speed-ups](resample.png)" in text
    assert (tmp_path / "resample.png").read_bytes().startswith(b"\x89PNG")
    assert "fused is so many times faster" in capsys.readouterr().out


def test_interruption_keeps_whole_rows(monkeypatch, tmp_path):
    real = cli.run

    def interrupted(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    chosen(monkeypatch, tiny(PAD))
    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["--op", PAD, "--rounds", "1", "--device", "cpu", "--output", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "resample.json").read_text())
    assert result["interrupted"] and len(result["rows"]) == 1
    assert "interrupted: only the rows below were measured" in (tmp_path / "resample.md").read_text()
