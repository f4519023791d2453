"""The command: a whole run on a CPU, exit codes, files, interruption."""

from __future__ import annotations

import json

import pytest
from support.contestants import Here

from benchmarks import prove
from benchmarks.proof.child import Answers
from benchmarks.proof.part import FAILED, INTERRUPTED, LATE, NOT_HERE, OK, OutOfTime, Part
from benchmarks.proof.targets import MISSED, NOT_MEASURED, PASSED
from benchmarks.systems import turns

TINY = {"generator": "resnet_5blocks", "ngf": 4, "ndf": 4, "num_patches": 16}
SIZES = {
    "operators": {"shapes": [(2, 3, 9, 7)], "ops": ["instance_norm_relu"], "rounds": 1, "compile": False},
    "launches": {"repeats": 1},
    "steps": {"systems": {"CUT": TINY}, "size": 64, "rounds": 1},
    "training": {"precisions": ["float32"], "steps": 2, "settings": TINY | {"crop_size": 32}},
}


@pytest.mark.slow  # the parts by themselves are tested with every change
def test_a_whole_run_on_a_cpu(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(turns, "Process", Here)
    assert prove.main(["--device", "cpu", "--output", str(tmp_path)], SIZES) == 1  # in two steps nobody learns
    result = json.loads((tmp_path / "proof.json").read_text())
    statuses = {name: part["status"] for name, part in result["parts"].items()}
    assert statuses == {
        "tests": NOT_HERE,
        "sanitizer": NOT_HERE,
        "operators": OK,
        "launches": OK,
        "steps": OK,
        "training": FAILED,
    }
    assert result["parts"]["tests"]["reason"] == result["parts"]["sanitizer"]["reason"] == "needs a GPU"
    assert len(result["parts"]["operators"]["rows"]) == 8 and result["parts"]["training"]["runs"][0]["steps"] == 2
    assert [len(row["samples_s"]) for row in result["parts"]["steps"]["systems"]["CUT"]] == [1] * 4
    held = {check["target"]: check["status"] for check in result["rows"]}
    assert held["fused operators wrong, or not to be measured"] == PASSED
    assert held["CUT step faster than the published form"] == NOT_MEASURED
    assert held["held-out score of the training run rises"] == MISSED
    assert "the held-out score rose in float32 by" in result["parts"]["training"]["reason"]
    assert result["device"] == "cpu" and result["cuda"] and result["gpu_after"] is None
    assert (tmp_path / "proof.md").read_text().startswith("# Proof: CPU wall time\n\n**") and (
        tmp_path / "proof.png"
    ).exists()
    told = capfd.readouterr()
    assert "tests: not possible here after 0 s: needs a GPU" in told.out and str(tmp_path / "proof.md") in told.out
    assert "operators: every operator against stock code and a copy, at most" in told.err


def planted(name: str, run, seconds: float = 10.0) -> Part:
    return Part(name, "planted", seconds, False, run, {"cpu": {}})


def raising(error: BaseException):
    def run(asked, found):
        raise error

    return run


def with_parts(monkeypatch, **runs) -> None:
    monkeypatch.setattr(prove, "PARTS", {name: planted(name, run) for name, run in runs.items()})


@pytest.mark.parametrize("error, status", [(ValueError("planted"), FAILED), (OutOfTime("planted"), LATE)])
def test_a_part_that_fails_or_is_late_stops_no_other(tmp_path, monkeypatch, capfd, error, status):
    with_parts(monkeypatch, first=raising(error), second=lambda asked, found: found.update(seen=1))
    assert prove.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    parts = json.loads((tmp_path / "proof.json").read_text())["parts"]
    assert parts["first"]["status"] == status and "planted" in parts["first"]["reason"]
    assert parts["second"]["status"] == OK and parts["second"]["seen"] == 1
    assert f"| first | **{status}** |" in (tmp_path / "proof.md").read_text()
    assert f"first ({status})" in capfd.readouterr().out


def test_a_missed_target_sets_the_exit_code(tmp_path, monkeypatch):
    run = {
        "precision": "float32",
        "steps": 300,
        "start": 12.0,
        "end": 12.1,
        "rise": 0.1,
        "untouched": 9.0,
        "seconds": 1.0,
    }
    with_parts(monkeypatch, training=lambda asked, found: found.update(runs=[run]))
    assert prove.main(["--device", "cpu", "--output", str(tmp_path)]) == 1
    assert "1 do not" in (tmp_path / "proof.md").read_text()


def test_ctrl_c_reports_what_was_measured(tmp_path, monkeypatch):
    with_parts(
        monkeypatch,
        first=lambda asked, found: found.update(seen=1),
        second=raising(KeyboardInterrupt()),
        third=raising(ValueError("not to be reached")),
    )
    assert prove.main(["--device", "cpu", "--output", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "proof.json").read_text())
    assert result["interrupted"] and result["parts"].keys() == {"first", "second"}
    assert result["parts"]["first"]["seen"] == 1 and result["parts"]["second"]["status"] == INTERRUPTED
    assert "**interrupted: only the rows below were measured**" in (tmp_path / "proof.md").read_text()


def test_what_was_measured_is_on_disk_before_the_next_part_begins(tmp_path, monkeypatch):
    seen = []

    def second(asked, found):
        seen.append(json.loads((tmp_path / "proof.json").read_text())["parts"]["first"]["status"])

    with_parts(monkeypatch, first=lambda asked, found: None, second=second)
    assert prove.main(["--device", "cpu", "--output", str(tmp_path)]) == 0 and seen == [OK]


def test_chosen_parts_share_the_time(tmp_path, monkeypatch):
    limits = []
    run = lambda asked, found: limits.append(asked)  # noqa: E731
    with_parts(monkeypatch, first=run, second=run, third=run)
    chosen = ["--part", "third", "--part", "first", "--minutes", "2"]
    assert prove.main(["--device", "cpu", "--output", str(tmp_path), *chosen]) == 0
    parts = json.loads((tmp_path / "proof.json").read_text())["parts"]
    assert list(parts) == ["first", "third"]
    assert parts["first"]["limit_s"] == pytest.approx(60, abs=10)
    assert parts["third"]["limit_s"] == pytest.approx(120, abs=20)


def test_a_whole_run_takes_less_than_ten_minutes():
    assert prove.MINUTES < 10 and sum(part.seconds for part in prove.PARTS.values()) <= 60 * prove.MINUTES + 60


@pytest.mark.parametrize("arguments", [["--part", "nothing"], ["--minutes", "0"], ["--device", "tpu"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        prove.main(arguments)
    assert stopped.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert prove.main(["--device", "cuda", "--output", str(tmp_path / "new")]) == 2
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


def test_answers_are_whole_lines(tmp_path):
    with open(tmp_path / "answers", "w") as file:
        out = Answers(file)
        out.row("rows", {"a": 1})
        out.set(b=2)
        out.end(late="then")
    lines = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert lines == [{"to": "rows", "row": {"a": 1}}, {"b": 2}, {"end": {"late": "then"}}]
