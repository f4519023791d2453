"""The benchmark machinery: gate, losses, files, interruption. Timings themselves are not asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import kernels
from benchmarks import __main__ as cli
from benchmarks.engine import machine, report, runner
from benchmarks.engine.bars import picture
from benchmarks.engine.gate import Gate
from benchmarks.engine.measure import Subject, WallClock, interleave, peak_bytes, spread
from benchmarks.ops.norm import FUSED, INTO, PROVIDERS, Provider
from benchmarks.ops.norm_cases import OPERATORS, Row, cases, make_inputs, necessary_bytes, rows

CPU = torch.device("cpu")
TINY = (2, 5, 9, 7)
ROOT = Path(__file__).resolve().parents[3]
WITHOUT_COMPILE = [provider for provider in PROVIDERS if not provider.compiles]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short samples, and one thread: on a shared machine two that meet at a barrier wait for each other's turn."""
    monkeypatch.setattr("benchmarks.engine.measure.MIN_SAMPLE_MS", 0.2)
    monkeypatch.setattr("kernels.keep_freed_memory", lambda: False)  # it would last for all tests of this process
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_cases(*names: str):
    return cases(full=False, names=names, shapes=[TINY])


def measured(providers, *names: str) -> list[dict]:
    return list(runner.run(tiny_cases(*names), providers, CPU, rounds=2))


def assembled(monkeypatch, rows: list[dict]) -> dict:
    """A whole result around given rows."""
    monkeypatch.setattr(cli, "run", lambda *_: iter(rows))
    return cli.measure_norms(cli.parse(["--op", "adain"]), CPU)


def wrong(name: str) -> Provider:
    """Right except for one element of y."""

    def build(row: Row):
        def run(x, *rest):
            y = kernels.instance_norm(x, impl="reference").clone()
            y[0, 0, 0, 0] += 0.1
            return y

        return run

    return Provider(name, build, "")


def slow(provider: Provider) -> Provider:
    def build(row: Row):
        function = provider.build(row)

        def run(*tensors):
            time.sleep(0.02)
            return function(*tensors)

        return run

    return provider._replace(build=build)


# ---- gate -----------------------------------------------------------------------------------------------------------


def test_wrong_provider_fails_without_a_number(monkeypatch):
    done = measured([PROVIDERS[0], wrong("wrong"), *WITHOUT_COMPILE[-2:]], "instance_norm")
    for row in done:
        result = row["providers"]["wrong"]
        assert result["status"] == "FAIL"
        assert "y: relative error" in result["reason"]
        assert not {"median_ms", "samples_ms", "fused_speedup", "percent_of_copy"} & result.keys()
    result = assembled(monkeypatch, done)
    assert len([f for f in result["summary"]["failures"] if f["provider"] == "wrong"]) == len(done)
    assert not any("wrong" in by_name for by_name in result["summary"]["speedups"].values())
    text = report.markdown(result)
    assert "* **FAIL** wrong: instance_norm 2x5x9x7 float32 contiguous fwd: y: relative error" in text


def test_wrong_fused_result_sets_the_exit_code(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "PROVIDERS", (PROVIDERS[0], wrong(FUSED)))
    arguments = ["--op", "instance_norm", "--shape", "2x5x9x7", "--rounds", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 1


def test_provider_that_raises_costs_only_its_cell():
    def build(row):
        def run(*tensors):
            raise RuntimeError("compiler crashed")

        return run

    (row, *_) = measured([*WITHOUT_COMPILE, Provider("broken", build, "")], "adain")
    assert row["providers"]["broken"] == {"status": "error", "reason": "RuntimeError: compiler crashed"}
    assert row["providers"][FUSED]["status"] == "ok"


def test_case_without_an_oracle_is_reported(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.engine.gate.SANE", {torch.float32: 0.0, torch.bfloat16: 0.1})
    done = measured(WITHOUT_COMPILE, "adain")
    assert [("error" in row) for row in done] == [True] * 4 + [False] * 4
    result = assembled(monkeypatch, done)
    assert "eager NCHW is off the float64 reference" in report.markdown(result)
    assert "eager NCHW is off the float64 reference" in capsys.readouterr().err


@pytest.mark.parametrize("op", [op.name for op in OPERATORS])
def test_every_provider_computes_its_operator(op):
    """At N = 2, where torch's instance norm has no defect, all pass in both dtypes, formats and modes."""
    for case in tiny_cases(op):
        inputs = make_inputs(case, CPU)
        gate = Gate(case, inputs)
        for row in rows(case):
            for provider in WITHOUT_COMPILE:
                function = provider.build(row)
                if function is None:
                    continue
                arranged = inputs.arranged(row.channels_last and not provider.nchw, row.backward)
                try:
                    verdict = gate.judge(function, arranged, row.backward)
                except kernels.BackendUnavailable:
                    assert provider.name == INTO
                    continue
                assert verdict.passed, f"{provider.name}, {row.label}: {verdict.reason}"


def test_gate_looks_at_every_gradient():
    (case, _) = tiny_cases("adaptive_instance_norm_relu")
    inputs = make_inputs(case, CPU)
    gate = Gate(case, inputs)

    def detached_shift(x, scale, shift):
        return kernels.adaptive_instance_norm(x, scale, 2 * shift - shift.detach(), activation="relu")

    verdict = gate.judge(detached_shift, inputs.arranged(False, True), backward=True)
    assert not verdict.passed
    assert verdict.reason.startswith("grad shift")


def test_inputs_are_the_same_in_every_process():
    (case, _) = tiny_cases("instance_norm_residual")
    a, b = make_inputs(case, CPU), make_inputs(case, CPU)
    assert all(torch.equal(p, q) for p, q in zip(a.tensors, b.tensors))
    assert [t.shape for t in a.tensors] == [torch.Size(TINY)] * 2


# ---- measuring ------------------------------------------------------------------------------------------------------


def test_loss_is_shown(monkeypatch):
    providers = [PROVIDERS[0], slow(next(p for p in PROVIDERS if p.name == FUSED))]
    done = measured(providers, "munit_layer_norm_relu")
    assert all(row["providers"]["eager"]["loss"] for row in done)
    result = assembled(monkeypatch, done)
    assert len(result["summary"]["losses"]) == len(done)
    text = report.markdown(result)
    assert "against eager: munit_layer_norm_relu 2x5x9x7 float32 contiguous fwd" in text
    assert "**loss 0." in text
    assert picture(result).startswith(b"\x89PNG")


def test_rounds_are_interleaved():
    order: list[str] = []
    subjects = [Subject(name, [lambda name=name: (order.append(name), time.sleep(0.003))]) for name in "ab"]
    for subject in subjects:
        WallClock().prepare(subject)
    order.clear()
    interleave(subjects, rounds=3)
    assert all(subject.repetitions == 1 for subject in subjects)
    assert order == ["a", "b"] * (len(order) // 2) and len(order) >= 8  # one discarded round and three kept
    assert all(len(subject.samples_ms) >= 3 and min(subject.samples_ms) >= 3 for subject in subjects)


def test_spread():
    assert spread([4.0]) == (4.0, 4.0, 4.0)
    assert spread([float(i) for i in range(11)]) == (2.0, 5.0, 8.0)


def test_peak_memory_counts_temporaries_and_forgets_what_was_freed():
    def call():
        for _ in range(3):
            a = torch.zeros(1 << 18)  # 1 MiB
            b = a + 1
            del a, b

    assert 0 <= peak_bytes(call, False, CPU) - (2 << 20) < 1024  # and a scalar or two


def test_necessary_bytes():
    def of(name, backward):
        (case, _) = tiny_cases(name)
        return necessary_bytes(Row(case, False, backward)) // 4 // 10  # float32; planes

    plane, padded = 9 * 7, 11 * 9
    assert of("instance_norm_relu", False) == 2 * plane
    assert of("instance_norm_relu", True) == 5 * plane
    assert of("instance_norm_residual", False) == 3 * plane
    assert of("instance_norm_relu_pad", True) == 3 * plane + 2 * padded
    assert of("adain", True) == 8 * plane


# ---- files and command line -----------------------------------------------------------------------------------------


def test_command_line_end_to_end(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--op", "instance_norm_relu", "--shape", "1x4x9x7", "--rounds", "2"]
    command += ["--skip", "torch.compile", "--device", "cpu", "--output", str(tmp_path / "new" / "folder")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "] 8/8" in done.stderr  # the progress bar, on a pipe
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["ops.json", "ops.md", "ops.png"]
    assert (folder / "ops.png").read_bytes().startswith(b"\x89PNG")
    assert "![speed-ups](ops.png)" in (folder / "ops.md").read_text()
    check_schema(json.loads((folder / "ops.json").read_text()))


def check_schema(result: dict) -> None:
    assert result["schema"] == report.SCHEMA
    assert result["kind"] == "CPU wall time" and result["device"] == "cpu" and result["interrupted"] is False
    assert result["date"].endswith("+00:00")
    assert {"cpu", "cores", "cores_usable", "threads", "memory_gib", "os", "architecture"} <= result["machine"].keys()
    assert {"python", "torch", "triton", "cuda", "kernels_isa", "torch_cpu_capability"} <= result["versions"].keys()
    assert {"hash", "dirty"} == result["commit"].keys()
    assert {"environment", "command", "rounds", "seconds", "other_load", "freed_memory_kept"} <= result.keys()
    assert {"speedups", "losses", "failures"} == result["summary"].keys()
    assert len(result["rows"]) == 8
    for row in result["rows"]:
        keys = {"operator", "shape", "padding", "dtype", "memory_format", "mode", "necessary_bytes"}
        assert keys | {"rounds", "rounds_disturbed", "noisy", "copy"} <= row.keys()
        assert {"eager", "eager, not in place", FUSED} <= row["providers"].keys()
        for name, provider in row["providers"].items():
            if provider["status"] == "ok":
                assert {"errors", "limits", "median_ms", "p20_ms", "p80_ms", "samples_ms"} <= provider.keys()
                assert {"percent_of_copy", "gbytes_per_s", "peak_bytes"} <= provider.keys()
                assert (name in (FUSED, INTO)) != ("fused_speedup" in provider)


def test_interruption_keeps_whole_rows(monkeypatch, tmp_path, capsys):
    clock = WallClock.prepare
    prepared = 0

    def interrupted(self, subject):
        nonlocal prepared
        prepared += 1
        if prepared == 8:  # in the second or third row
            raise KeyboardInterrupt
        clock(self, subject)

    monkeypatch.setattr(WallClock, "prepare", interrupted)
    arguments = ["--op", "adain", "--shape", "2x5x9x7", "--rounds", "1", "--skip", "torch.compile", "--device", "cpu"]
    assert cli.main([*arguments, "--output", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "ops.json").read_text())
    assert result["interrupted"] and 1 <= len(result["rows"]) < 8
    assert "interrupted: only the rows below were measured" in (tmp_path / "ops.md").read_text()
    assert (tmp_path / "ops.png").exists()
    assert "interrupted" in capsys.readouterr().err


def test_interruption_before_the_first_row(monkeypatch, tmp_path):
    def run(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", run)
    assert cli.main(["--device", "cpu", "--output", str(tmp_path)]) == 130
    assert json.loads((tmp_path / "ops.json").read_text())["rows"] == []


def test_atomic_writing_keeps_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "ops.json"
    report.write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_atomically(path, b"new, half written")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["ops.json"]


@pytest.mark.parametrize(
    "arguments", [["--shape", "3x4"], ["--shape", "1x2x1x1"], ["--rounds", "0"], ["--op", "nothing"]]
)
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_full_covers_published_and_awkward_shapes():
    everything = cases(full=True)
    assert {case.op.name for case in everything} == {op.name for op in OPERATORS}
    for op in OPERATORS:
        shapes = [case.shape for case in everything if case.op is op]
        assert any(h % 2 and w % 2 for _, _, h, w in shapes) and any(c == 3 for _, c, _, _ in shapes)
    assert {case.dtype for case in everything} == {torch.float32, torch.bfloat16}
    assert all(case.compiled == ("fwd", "fwd+bwd") for case in everything)


def test_machine_slug_is_a_folder_name():
    name = machine.slug(CPU)
    assert name and name == name.lower() and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-")
