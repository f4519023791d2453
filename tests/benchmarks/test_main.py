"""The command line: files, exit codes, interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.norm_suite import CPU, changed, measured, off_in_one_element

from benchmarks import __main__ as cli
from benchmarks.engine import machine
from benchmarks.engine.measure import WallClock
from benchmarks.engine.work import EAGER, FUSED, INTO
from benchmarks.ops.norm import NOT_IN_PLACE, SUITE

ROOT = Path(__file__).resolve().parents[2]


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
    assert result["schema"] == machine.SCHEMA
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
        assert {EAGER, NOT_IN_PLACE, FUSED} <= row["providers"].keys()
        for name, provider in row["providers"].items():
            if provider["status"] == "ok":
                assert {"errors", "limits", "median_ms", "p20_ms", "p80_ms", "samples_ms"} <= provider.keys()
                assert {"percent_of_copy", "gbytes_per_s", "peak_bytes"} <= provider.keys()
                assert (name in (FUSED, INTO)) != ("fused_speedup" in provider)


def test_wrong_fused_result_sets_the_exit_code(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "SUITES", (changed(FUSED, off_in_one_element),))
    arguments = ["--op", "instance_norm", "--shape", "2x5x9x7", "--rounds", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--skip", "torch.compile", "--output", str(tmp_path)]) == 1


def test_interruption_keeps_whole_rows(monkeypatch, tmp_path, capsys):
    clock = WallClock.prepare
    prepared = 0

    def interrupted(self, timing):
        nonlocal prepared
        prepared += 1
        if prepared == 8:  # in the second or third row
            raise KeyboardInterrupt
        clock(self, timing)

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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shape", "3x4"],
        ["--shape", "1x2x1x1"],
        ["--rounds", "0"],
        ["--op", "nothing"],
        ["--shape", "1x2x3x4", "--op", "adain", "--op", "patch_nce"],  # measured at the published shapes only
    ],
)
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert cli.main(["--device", "cpu", "--output", str(file / "folder")]) == 2
    assert f"{file} is a file" in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_extras_keep_the_rows(monkeypatch, tmp_path):
    """What is measured behind the rows, such as the curve of memory, may take long too."""

    def extras(cases, *_):
        if cases:
            raise KeyboardInterrupt
        return {"memory": []}

    rows = measured(SUITE, "adain")
    monkeypatch.setattr(cli, "run", lambda *_: iter(rows))
    monkeypatch.setattr(cli, "SUITES", (SUITE._replace(extras=extras),))
    assert cli.main(["--op", "adain", "--device", "cpu", "--output", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "ops.json").read_text())
    assert result["interrupted"] and len(result["rows"]) == 8 and result["memory"] == []


def test_rounds_are_those_of_the_help_in_every_suite(monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "run", lambda suite, cases, device, rounds, skip: asked.append(rounds) or iter(()))
    for arguments, rounds in (([], 7), (["--full"], 20), (["--full", "--rounds", "3"], 3)):
        for suite in cli.SUITES:
            cli.measure(suite, [], cli.parse(arguments), CPU)
        assert asked == [rounds] * len(cli.SUITES)
        asked.clear()


def test_a_device_that_is_not_there_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["--device", "cuda", "--output", str(tmp_path / "new")]) == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
