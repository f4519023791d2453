"""The command: what it refuses, what it drives in miniature checkouts, what it reports."""

import json
import sys

import pytest
import torch
from support.contestants import Here
from support.outside import FAMILY, MONAI, MUNIT, STARGAN, lay_out

from benchmarks import foreign
from benchmarks.outside import checkouts, child, lines, measure, report
from benchmarks.outside.trainers import TRAINERS
from benchmarks.systems import turns
from kernels import _commands

# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, told",
    [
        ((), "want --packages, or a checkout with --cut, --cyclegan, --munit, --stargan"),
        (("--packages", "--size", "100"), "--size: got 100, want a multiple of 64"),
        (("--packages", "--voxels", "0"), "--voxels: got 0, want a multiple of 16"),
        (("--packages", "--rounds", "0"), "got 0, want a number >= 1"),
        (("--packages", "--precision", "float16"), "invalid choice: 'float16'"),
    ],
)
def test_command_line_errors(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        foreign.main(words)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_a_folder_that_is_no_checkout_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(foreign, "measure", None)
    arguments = ["--output", str(tmp_path / "results"), "--munit"]
    assert foreign.main([*arguments, str(tmp_path / "none")]) == 2
    assert "--munit" in (said := capsys.readouterr().err) and "none is no folder" in said
    lay_out(tmp_path, {name: text for name, text in MUNIT.items() if name != "trainer.py"})
    assert foreign.main([*arguments, str(tmp_path)]) == 2
    assert f"error: --munit: {tmp_path} is no checkout of MUNIT: it has no trainer.py\n" == capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_packages_that_are_not_installed_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert foreign.main(["--packages", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for name in ("monai", "dynamic-network-architectures", "segmentation-models-pytorch"):
        assert f"left out, {name} is not installed" in said


def test_the_command_minds_ctrl_c_while_torch_is_imported():
    assert "benchmarks.foreign" in _commands.MODULES


# ---- miniature checkouts ---------------------------------------------------------------------------------------------


def run(tmp_path, monkeypatch, *words: str) -> dict:
    monkeypatch.setattr(turns, "Process", Here)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert (
        foreign.main(["--rounds", "1", "--size", "64", "--output", str(tmp_path / "out"), "--device", "cpu", *words])
        == 0
    )
    result = json.loads((tmp_path / "out" / "foreign.json").read_text())
    text = (tmp_path / "out" / "foreign.md").read_text()
    for row in result["rows"]:
        assert report.heading(row) in text and row["status"] == "ok"
    return result


def test_cut_style_checkout(tmp_path, monkeypatch):
    """Missing packages, a network that is built with the first batch, a loss with a buffer, draws of numpy."""
    lay_out(tmp_path, FAMILY)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    result = run(tmp_path, monkeypatch, "--cyclegan", str(tmp_path))
    assert result["left"] == []
    (row,) = result["rows"]
    assert list(row["comparison"]) == [lines.FUSE, lines.ACCELERATE]
    for found in row["comparison"].values():
        assert found["reason"] == "" and set(found["gradients"]) == {"G", "F"} and found["gradients"]["G"] > 0
        assert "ReLU merged" in found["report"]["G"]
    exact, coarse = row["tables"].values()
    assert list(exact) == [lines.STOCK, lines.KEPT, lines.FUSE, lines.ACCELERATE]
    assert list(coarse) == [lines.PUBLISHED, lines.STOCK, lines.FUSE, lines.ACCELERATE, lines.PRECISION]
    for rows in (exact, coarse):
        for found in rows.values():
            assert found["status"] == "ok" and len(found["samples_s"]) == 1 and found["than_published"] > 0
    errors = {name: found["gradient_distance"]["G"] for name, found in coarse.items()}
    assert errors[lines.PUBLISHED] < 1e-4 < min(errors[lines.STOCK], errors[lines.ACCELERATE], errors[lines.PRECISION])
    assert sys.argv[0] != "train.py"


def test_munit_style_checkout(tmp_path, monkeypatch):
    """Calls of .cuda() on a CPU, a configuration, a loss whose weight is 0; encoders that are called one by one."""
    lay_out(tmp_path, MUNIT)
    result = run(tmp_path, monkeypatch, "--munit", str(tmp_path), "--precision", "float32")
    (row,) = result["rows"]
    assert set(row["losses"]) == {"dis_total", "gen_total"} and list(row["tables"]) == ["float32"]
    setting = child.Setting(str(tmp_path), 64, 1, torch.device("cpu"))
    driven = child.build("munit", setting)
    assert [type(m).__name__ for m in driven.called] == ["Conv2d"] * 4 + ["Dis"] * 2


def test_stargan_style_checkout(tmp_path, monkeypatch):
    """A loop that is run for a turn; losses from its log."""
    lay_out(tmp_path, STARGAN)
    result = run(tmp_path, monkeypatch, "--stargan", str(tmp_path), "--batch", "1", "--precision", "float32")
    assert list(result["rows"][0]["losses"]) == ["D/loss"]


def test_a_package(tmp_path, monkeypatch):
    lay_out(tmp_path, MONAI)
    monkeypatch.syspath_prepend(tmp_path)
    result = run(tmp_path, monkeypatch, "--packages", "--voxels", "16", "--precision", "float32")
    (row,) = [row for row in result["rows"] if row["trainer"] == "dynunet"]
    assert list(row["tables"]["float32"]) == [lines.STOCK, lines.LAST, lines.FUSE, lines.ACCELERATE]
    assert row["batch"] == 2 and row["tables"]["float32"][lines.FUSE]["status"] == "ok"


def test_a_line_that_computes_something_else_is_not_timed(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path, FAMILY)
    broken = lines.Line("", lambda driven: driven.networks["G"][2].register_forward_hook(lambda m, x, y: y * 1.001))
    monkeypatch.setitem(lines.LINES, lines.FUSE, broken)
    monkeypatch.setattr(turns, "Process", Here)
    words = ["--rounds", "1", "--size", "64", "--output", str(tmp_path / "out"), "--cyclegan", str(tmp_path)]
    assert foreign.main([*words, "--precision", "float32", "--device", "cpu"]) == 1
    (row,) = json.loads((tmp_path / "out" / "foreign.json").read_text())["rows"]
    fuse = row["tables"]["float32"][lines.FUSE]
    assert fuse["status"] == "FAIL" and fuse["reason"].startswith("in float64: losses: ") and not fuse["samples_s"]
    assert row["tables"]["float32"][lines.ACCELERATE]["samples_s"]
    assert "in float64: losses" in (tmp_path / "out" / "foreign.md").read_text() + capsys.readouterr().err


def test_ctrl_c_leaves_what_was_measured(tmp_path, monkeypatch):
    lay_out(tmp_path, FAMILY)

    class Interrupted(Here):
        steps = 0

        def receive(self, until):
            if self.command[0] == "step":
                Interrupted.steps += 1
                if Interrupted.steps == 6:  # the second of the second round
                    raise KeyboardInterrupt
            return super().receive(until)

    monkeypatch.setattr(turns, "Process", Interrupted)
    words = ["--rounds", "5", "--size", "64", "--output", str(tmp_path / "out"), "--cyclegan", str(tmp_path)]
    assert foreign.main([*words, "--device", "cpu"]) == _commands.INTERRUPTED
    result = json.loads((tmp_path / "out" / "foreign.json").read_text())
    (row,) = result["rows"]
    assert result["interrupted"] and list(row["tables"]) == ["float32"]
    assert [len(found["samples_s"]) for found in row["tables"]["float32"].values()] == [1, 1, 1, 1]
    assert all(found["than_stock"] for found in row["tables"]["float32"].values())


def test_bfloat16_is_left_out_where_it_would_take_hours(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert foreign.default_precisions(cpu)[0] == ["float32"] and "left out" in foreign.default_precisions(cpu)[1]
    assert foreign.default_precisions(gpu) == (["float32", "bfloat16"], "")


@pytest.mark.slow
def test_in_processes_of_its_own(tmp_path):
    lay_out(tmp_path, FAMILY)
    words = ["--rounds", "1", "--size", "64", "--output", str(tmp_path / "out"), "--cyclegan", str(tmp_path)]
    assert foreign.main([*words, "--precision", "float32", "--threads", "1", "--device", "cpu"]) == 0
    (row,) = json.loads((tmp_path / "out" / "foreign.json").read_text())["rows"]
    assert all(found["peak_bytes"] > 2**27 for found in row["tables"]["float32"].values())
    assert "models" not in sys.modules


# ---- stand-ins -------------------------------------------------------------------------------------------------------


def test_stand_ins_can_be_imported_but_not_used(tmp_path):
    checkouts.enter(str(tmp_path))
    import dominate.tags

    assert issubclass(dominate.tags.meta, object)
    with pytest.raises(ImportError, match="dominate.tags.meta was called, but it is not installed"):
        dominate.tags.meta()
    with pytest.raises(ModuleNotFoundError, match="nobodys_package"):
        import nobodys_package  # noqa: F401


# ---- the report on made-up figures -----------------------------------------------------------------------------------


def timed(line: str, seconds: float | None, name: str = "", **more: object) -> dict:
    row = {"name": name or line, "line": line, "status": "ok", "reason": "", "samples_s": []}
    if seconds is not None:
        row |= {"samples_s": [seconds], "p20_s": seconds, "median_s": seconds, "p80_s": seconds, "peak_bytes": 2**30}
        row["gradient_distance"] = {"G": 1e-3, "D": 2e-3}
    return row | more


def munit_row() -> dict:
    good = {"losses": 0.0, "later_losses": 1e-9, "gradients": {"G": 1e-12}, "weights": {"G": 1e-10}, "checkpoints": ""}
    good |= {"reason": "", "report": {"gen_a": "kernels.fuse: 1 replaced\n  enc: InstanceNorm2d"}}
    rows = {
        lines.PUBLISHED: timed(lines.STOCK, 6.0, lines.PUBLISHED),
        lines.STOCK: timed(lines.STOCK, None, status="error", reason="RuntimeError: expected BFloat16"),
        lines.FUSE: timed(lines.FUSE, 2.0),
        lines.ACCELERATE: timed(lines.ACCELERATE, 1.5),
    }
    measure.relate(rows, lines.BFLOAT16)
    row = {"trainer": "munit", "size": 256, "batch": 1, "status": "ok", "reason": "", "unmended": {}}
    return row | {"comparison": {lines.FUSE: good, lines.ACCELERATE: good}, "tables": {lines.BFLOAT16: rows}}


def test_a_stock_that_does_not_run_is_no_failure_and_leaves_the_ratio_to_the_published_form():
    row = munit_row()
    assert not report.failed(row)
    text = "\n".join(report.section(row))
    assert "| **stock** | does not run | – | – | – | – |" in text
    assert "RuntimeError: expected BFloat16" in text
    assert "| accelerate | 1.5 (1.5–1.5) | – | 4.00x | 1.00 | 2.0e-03 |" in text
    assert "| fuse | 0.0e+00 | 1.0e-12 | 1.0e-09 | 1.0e-10 | equal |" in text
    assert "<summary>gen_a: kernels.fuse: 1 replaced</summary>" in text and "enc: InstanceNorm2d" in text
    assert "MUNIT, 256 x 256, batch 1" in report.text(row)


def test_what_is_a_failure():
    row = munit_row()
    row["tables"][lines.BFLOAT16][lines.FUSE]["status"] = "FAIL"
    assert report.failed(row)
    assert report.failed(munit_row() | {"status": "error", "reason": "stock does not run in float64"})
    wrong = {"reason": "losses: 1", "report": {}}
    assert report.failed(munit_row() | {"comparison": {lines.FUSE: wrong}})
    assert not report.failed(munit_row() | {"comparison": {lines.LAST: wrong}})


def test_a_wrong_gradient_of_stock_is_told():
    text = "\n".join(report.section(munit_row() | {"unmended": {"distance": {"gen_a": 1.4, "gen_b": 0.0}}}))
    assert "Stock's own gradients are wrong here (gen_a 1.4, relative)" in text


@pytest.mark.parametrize("name", TRAINERS)
def test_contestants_of_every_trainer_have_a_line_and_are_compared(name):
    trainer = TRAINERS[name]
    for precision in (lines.FLOAT32, lines.BFLOAT16):
        found = lines.contestants(trainer, precision)
        assert {contest.line for contest in found.values()} <= set(lines.LINES)
        ours = {c.line for c in found.values()} - {lines.STOCK, lines.KEPT, lines.PRECISION}
        assert ours == set(lines.compared(trainer))
    assert bool(trainer.option) != bool(trainer.package) and trainer.size % 16 == 0
