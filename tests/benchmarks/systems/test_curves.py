"""Cost curves: which points there are, what is foretold of them, what is left out and how it is told."""

import json
from pathlib import Path

import pytest
import torch
from support.contestants import Here

from benchmarks import curves
from benchmarks.systems import curve_points, curve_report, turns
from benchmarks.systems.curve_points import Point, forecast, groups, points, work
from benchmarks.systems.stock import CAREFUL, OURS, PUBLISHED, StockMethod
from benchmarks.systems.turns import Contestant

TINY = {"generator": "resnet_6blocks", "ngf": 8, "ndf": 4, "feature_width": 16, "num_patches": 16, "crop_size": 32}
GIB = 2**30


def test_points_are_on_four_axes_the_cheapest_first():
    found = points()
    assert len(found) == 4 + 5 + 4 + 4 - 2 and found[Point()] == ["side", "batch", "patches"]
    assert next(iter(found)) == Point(side=128)
    costs = [work(point) for point in found]
    assert costs == sorted(costs) and work(Point(bank=1024)) > work(Point())
    for point in found:
        config = curves.CUTConfig(**point.settings())  # UsageError where patches have no room
        assert (config.crop_size, config.batch_size, config.num_patches) == point[:3]
        assert (config.negatives, config.queue_size) == (("external", point.bank) if point.bank else ("image", 16384))


def row(point: Point, step_s: float, peak: float, start_s: float = 10.0) -> dict:
    figures = {"median_s": step_s, "peak_bytes": peak, "status": "ok", "samples_s": [step_s]}
    return {"point": point._asdict(), "start_s": start_s, "providers": {name: dict(figures) for name in curves.NAMES}}


def test_a_forecast_is_from_the_largest_point_so_far():
    small, large = row(Point(side=128), 1.0, 1 * GIB), row(Point(), 4.0, 2.5 * GIB)
    assert forecast(Point(), [], curves.NAMES, 3, "cpu") is None
    found = forecast(Point(batch=2), [large, small], curves.NAMES, 3, "cpu")
    assert found.step_s[OURS] == pytest.approx(8.0, rel=0.02) and found.rounds == 3
    assert found.seconds == pytest.approx(10 + 4 * sum(found.step_s.values()))
    assert found.peak_bytes[OURS] == pytest.approx(4.5 * GIB, rel=0.02)
    slow = forecast(Point(batch=4), [small, large], curves.NAMES, 3, "cpu")
    assert slow.rounds == 1 and slow.seconds == pytest.approx(10 + 2 * sum(slow.step_s.values()))
    large["providers"][OURS] = {"status": "error"}  # then from the one before
    assert forecast(Point(), [small, large], curves.NAMES, 3, "cpu").step_s[OURS] == pytest.approx(4.0, rel=0.1)
    on_gpu = forecast(Point(), [row(Point(), 0.1, GIB)], curves.NAMES, 2, "cuda")
    assert on_gpu.seconds == pytest.approx(10 + 3 * 0.1 * (1 + 24 + 2 * 20))


def test_contestants_take_turns_where_memory_holds_all_of_them():
    sizes = {PUBLISHED: 6.0 * GIB, CAREFUL: 5.0 * GIB, OURS: 3.0 * GIB}
    assert groups(sizes, curves.NAMES, 14 * GIB) == ([[PUBLISHED, CAREFUL, OURS]], {})
    assert groups(sizes, curves.NAMES, 13 * GIB) == ([[PUBLISHED], [CAREFUL], [OURS]], {})
    together, left = groups(sizes, curves.NAMES, 5.5 * GIB)
    assert together == [[CAREFUL], [OURS]] and left == {PUBLISHED: "predicted 6.0 GiB, 5.5 free"}
    assert groups(sizes, curves.NAMES, GIB)[0] == []
    assert groups({}, curves.NAMES, GIB) == ([[PUBLISHED, CAREFUL, OURS]], {})  # the first point


def test_free_memory_is_that_of_this_machine():
    assert 2**20 < curve_points.free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("point", [Point(32, 2, 16), Point(32, 1, 8, 24)], ids=["batch of two", "bank"])
@pytest.mark.parametrize("name", curves.NAMES)
def test_contestants_take_the_steps_of_a_point(name, point):
    model, batch, turn = curves.contestant("cpu", name, "float32", TINY | point.settings())
    assert isinstance(model, StockMethod) == (name != OURS) and turn == 1
    assert [tuple(images.shape) for images in batch] == [(point.batch, 3, 32, 32)] * 2
    assert all(torch.isfinite(loss) for loss in model.step(*batch).values())


AXES = {"side": (32, 40), "bank": (16,)}


def small_points(monkeypatch) -> None:
    """Published defaults as tiny as the settings."""
    monkeypatch.setattr(Point.__new__, "__defaults__", (32, 1, 16, 0))


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(turns, "Process", Here)
    small_points(monkeypatch)


def test_command_line(here, tmp_path, capsys):
    tiny = {key: value for key, value in TINY.items() if key not in ("crop_size", "num_patches")}
    assert curves.main(["--rounds", "2", "--output", str(tmp_path)], tiny, AXES) == 0
    result = json.loads((tmp_path / "curves.json").read_text())
    assert result["precision"] == "float32" and not result["interrupted"]
    assert [found["axes"] for found in result["rows"]] == [["side"], ["bank"], ["side"]]
    for found in result["rows"]:
        assert found["together"] and found["rounds"] == 2 and found["baseline"] == PUBLISHED
        assert found["providers"].keys() == set(curves.NAMES) and not found["not_measured"]
        for name, r in found["providers"].items():
            assert r["status"] == "ok" and len(r["samples_s"]) == 2 and r["peak_bytes"] > 2**27, r
            assert ("ours_speedup" in r) == (name != OURS)
    assert "predicted_s" in result["rows"][1] and "predicted_s" not in result["rows"][0]
    text = (tmp_path / "curves.md").read_text()
    assert "\n| 32 | " in text and "\n| 40 | " in text and "\n| 16 | " in text and "![curves](curves.png)" in text
    assert "CUT's repository has no bank" in text
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert str(tmp_path / "curves.md") in said.out and "[3/3] 1 x 40 x 40, 16 patches: predicted" in said.err


def measured(by_name: dict | None = None, **more: object) -> dict:
    figures = {"status": "ok", "reason": "", "samples_s": [2.0], "p20_s": 2.0, "median_s": 2.0, "p80_s": 2.0}
    rows = {name: figures | {"name": name, "peak_bytes": GIB, "first_step_s": 2.0} for name in curves.NAMES}
    for name, changes in (by_name or {}).items():
        rows[name] = rows[name] | changes
    curve_report.relate(rows)
    about = {"together": True, "rounds": 1, "baseline": PUBLISHED, "not_measured": "", "noisy": False, "start_s": 1.0}
    return about | {"providers": rows, "other_load": 0.0} | more


def run_with(monkeypatch, tmp_path, found, *arguments: str, interrupted: bool = False) -> tuple[int, dict, str]:
    """(status, JSON, Markdown) where measuring a point returns `found`. Pictures take a second."""
    monkeypatch.setattr(curves, "measure", lambda *_: (dict(found), interrupted))
    monkeypatch.setattr(curve_report, "picture", lambda result: b"")
    status = curves.main(["--output", str(tmp_path), *arguments])
    return status, json.loads((tmp_path / "curves.json").read_text()), (tmp_path / "curves.md").read_text()


def test_what_would_take_too_long_is_foretold_and_left_out(monkeypatch, tmp_path):
    status, result, text = run_with(monkeypatch, tmp_path, measured(), "--minutes", "1")
    assert status == 0 and result["minutes"] == 1
    left = [found for found in result["rows"] if found["not_measured"]]
    assert result["rows"][0]["providers"] and len(left) == len(points()) - 1
    assert all(not found["providers"] and found["predicted_s"] > 60 for found in left)
    assert "| 1024 | not measured: predicted " in text and " s left | – |" in text


def test_losses_noise_and_what_did_not_fit_are_shown(monkeypatch, tmp_path):
    left = {"status": "left out", "reason": "predicted 60.0 GiB, 20.0 free", "samples_s": []}
    for key in ("median_s", "peak_bytes"):
        left[key] = None
    faster = {"median_s": 1.0, "p20_s": 1.0, "p80_s": 1.0}
    found = measured({CAREFUL: faster}, noisy=True, other_load=0.5, together=False, baseline=CAREFUL)
    found["providers"][PUBLISHED] = {"name": PUBLISHED, "status": "left out", "reason": left["reason"], "samples_s": []}
    _, _, text = run_with(monkeypatch, tmp_path, found)
    assert "| 1 (1–1) **loss 0.50x** | **left out** | 1.00 / 1.00 / – | – |" in text
    assert "1, one after the other, compared with careful Python, **noisy**: others took 0.50 cores |" in text
    assert "* 0.50x against careful Python: 1 x 128 x 128, 256 patches" in text
    assert "* **left out** published form: 1 x 128 x 128, 256 patches: predicted 60.0 GiB, 20.0 free" in text


def test_a_wrong_step_of_ours_sets_the_status(monkeypatch, tmp_path):
    found = measured({OURS: {"status": "FAIL", "reason": "gradient of G: 0.5"}})
    status, _, text = run_with(monkeypatch, tmp_path, found)
    assert status == 1 and "* **FAIL** ours: 1 x 128 x 128, 256 patches: gradient of G: 0.5" in text


def test_ctrl_c_keeps_what_was_measured(monkeypatch, tmp_path):
    status, result, text = run_with(monkeypatch, tmp_path, measured(), interrupted=True)
    assert status == 130 and result["interrupted"] and "**interrupted" in text
    assert result["rows"][0]["providers"] and len(result["rows"]) == len(points())
    assert {found["not_measured"] for found in result["rows"][1:]} == {curves.ENDED}


def test_ctrl_c_in_a_point_ends_its_processes(here, monkeypatch, tmp_path):
    """In the second turn: what was timed in the first is there."""
    real, closed = turns.Turns.step, []

    def step(self):
        if self.rows[OURS]["samples_s"]:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(turns.Turns, "step", step)
    monkeypatch.setattr(Here, "close", lambda self: closed.append(self))
    tiny = {key: value for key, value in TINY.items() if key not in ("crop_size", "num_patches")}
    assert curves.main(["--rounds", "2", "--output", str(tmp_path)], tiny, AXES) == 130
    first, *rest = json.loads((tmp_path / "curves.json").read_text())["rows"]
    assert len(closed) == 3 and all(len(r["samples_s"]) == 1 for r in first["providers"].values())
    assert {found["not_measured"] for found in rest} == {curves.ENDED}


def test_one_after_the_other_each_alone(here, tmp_path, monkeypatch):
    """A contestant's process ends before the next one's begins; all are compared."""
    alive, most = set(), []
    start = Here.__init__

    def begun(self, *given):
        start(self, *given)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(Here, "__init__", begun)
    monkeypatch.setattr(Here, "close", lambda self: alive.discard(self))
    chosen = {
        name: Contestant("benchmarks.curves", {"name": name, "precision": "float32", "settings": TINY}, "float32")
        for name in curves.NAMES
    }
    rows, interrupted = curves.in_groups(chosen, [[name] for name in chosen], 1, torch.device("cpu"), 1e30)
    assert most == [1, 1, 1] and not interrupted and not alive
    assert all(r["status"] == "ok" and len(r["samples_s"]) == 1 for r in rows.values())
    assert rows[OURS]["gradient_distance"].keys() == {"G", "D", "F"}


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--minutes", "x"], ["--rounds", "0"], ["--precision", "a"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        curves.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_the_files_of_another_precision_have_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(curves, "measure", lambda *_: (measured(), False))
    assert curves.main(["--precision", "bfloat16", "--output", str(tmp_path)], axes={"batch": (1,)}) == 0
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [
        "curves_bfloat16.json",
        "curves_bfloat16.md",
        "curves_bfloat16.png",
    ]
    assert "* **published form**, float32" in (tmp_path / "curves_bfloat16.md").read_text()
