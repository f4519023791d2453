"""The table of all methods: what is measured of each, the gate, the report."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.contestants import Here

from benchmarks import zoo
from benchmarks.engine.work import FUSED
from benchmarks.systems import turns, zoo_report
from benchmarks.systems.stock import CAREFUL, PUBLISHED, StockMethod
from benchmarks.systems.zoo_report import PLAIN
from i2i.methods import METHODS

TINY = {"crop_size": 32, "generator": "resnet_6blocks", "ngf": 4, "ndf": 4, "num_patches": 16, "feature_width": 16}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("munit", "sincut") else ()) for name in METHODS]
)
def test_every_method_takes_a_step_on_its_batch_either_way(name):
    """Losses are those of the same network before any update, or after one of its discriminator: a learning rate of
    2e-4 leaves 1e-4 of rounding there at most."""
    losses = {}
    for contestant in zoo.names(name):
        model, batch, turn = zoo.contestant("cpu", name, contestant, "float32", METHODS[name].Config.SAMPLE)
        assert turn >= 1 and model.config.precision == "float32"
        assert isinstance(model, StockMethod) == (contestant in (PUBLISHED, CAREFUL))
        torch.manual_seed(0)
        losses[contestant] = {term: float(loss.detach()) for term, loss in model.step(*batch).items()}
    assert (len(losses) == 4) == (name in zoo.STOCK)
    for found in losses.values():
        assert found == pytest.approx(losses[PLAIN], rel=1e-4, abs=1e-5)


def test_batches_have_the_shapes_of_the_data_set():
    pair = SimpleNamespace(dataset_mode="aligned", batch_size=2, crop_size=32, input_nc=1, output_nc=3)
    a, b = zoo.batch(pair)
    assert (
        a.shape == (2, 1, 32, 32) and b.shape == (2, 3, 32, 32) and -1 <= float(a.min()) < -0.9 < 0.9 < float(b.max())
    )

    labels = SimpleNamespace(table=lambda: torch.eye(5))
    images, given = zoo.batch(
        SimpleNamespace(**vars(pair) | {"dataset_mode": "few_labels", "batch_size": 8}, label_space=lambda: labels)
    )
    assert images.shape == (8, 1, 32, 32)
    assert torch.equal(given, torch.eye(5)[[0, 0, 1, 1, 2, 2, 3, 3]])


def test_a_turn_begins_where_the_generators_are_updated_next(monkeypatch):
    """Its first step is what the gate sees."""

    class Alternating(METHODS["fastcut"]):
        def extra_state(self):
            return {"iteration": 0, "pool": 1}

        def load_extra_state(self, state):
            self.state = state

    monkeypatch.setitem(METHODS, "fastcut", Alternating)
    monkeypatch.setitem(zoo.CASES, "fastcut", zoo.Case(turn=5, changes=TINY | {"batch_size": 2}))
    model, batch, turn = zoo.contestant("cpu", "fastcut", FUSED, "float32", {"num_patches": 8})
    assert model.state == {"iteration": 4, "pool": 1} and turn == 5
    assert model.config.num_patches == 8 and [x.shape for x in batch] == [(2, 3, 32, 32)] * 2


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(turns, "Process", Here)
    arguments = ["--methods", "fastcut", "--rounds", "2", "--output", str(tmp_path)]
    assert zoo.main(arguments, {"fastcut": TINY}) == 0
    result = json.loads((tmp_path / "zoo.json").read_text())
    (row,) = result["rows"]
    assert list(row["providers"]) == [FUSED, PLAIN, PUBLISHED, CAREFUL]
    fused, plain, published, _ = row["providers"].values()
    assert result["precision"] == "float32" and row["method"] == "fastcut"
    for r in row["providers"].values():
        assert r["status"] == "ok" and len(r["samples_s"]) == 2 and r["peak_bytes"] > 2**27
        assert 0 < r["outside_convolutions"] < 1 and r["batch"] == [[1, 3, 32, 32]] * 2
    assert fused["speedup"] == pytest.approx(plain["median_s"] / fused["median_s"])
    assert published["fused_speedup"] == pytest.approx(published["median_s"] / fused["median_s"])
    assert 0 < max(fused["gradient_distance"].values()) < 0.01 and set(plain["gradient_distance"].values()) == {0}
    text = (tmp_path / "zoo.md").read_text()
    assert "| fastcut | 1x3x32x32, 1x3x32x32 | " in text and "![steps](zoo.png)" in text
    assert (
        "* fastcut: G " in text
        and f"* fastcut, {PUBLISHED}: G " in text
        and f"* **{CAREFUL}** of fastcut: stock" in text
    )
    assert (tmp_path / "zoo.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "zoo.md") in capsys.readouterr().out


def measured(seconds: float, **more: object) -> dict:
    times = {"median_s": seconds, "p20_s": seconds, "p80_s": seconds, "samples_s": [seconds], "peak_bytes": 2**30}
    return {"status": "ok", "reason": "", "batch": [[1, 3, 8, 8]]} | times | more


def fake_measure(fused: dict, plain: dict, interrupted: bool = False):
    rows = {FUSED: fused | {"name": FUSED}, PLAIN: plain | {"name": PLAIN}}
    return lambda *_: ({name: dict(row) for name, row in rows.items()}, interrupted)


def test_losses_changes_and_turns_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "measure", fake_measure(measured(2.0), measured(1.0, peak_bytes=2**31)))
    monkeypatch.setitem(zoo.CASES, "cut", zoo.Case(turn=5, changes={"batch_size": 4}))
    assert zoo.main(["--methods", "cut,pix2pix", "--output", str(tmp_path)]) == 0
    text = (tmp_path / "zoo.md").read_text()
    assert "* cut: mean of 5 steps, which together update all networks, batch_size 4\n" in text
    assert "* pix2pix: mean" not in text
    assert "## Losses (2)\n\n* cut: 0.50x against plain torch\n* pix2pix: 0.50x against plain torch\n" in text
    assert "| **loss 0.50x** | 1.00 / 2.00 | 0.50 |" in text and "| **loss 0.50x** |" in capsys.readouterr().out


def test_a_table_of_bfloat16_has_files_of_its_own(tmp_path, monkeypatch):
    asked = []

    def measure(contestants, *_):
        asked.extend(contestants.values())
        return {name: measured(1.0) | {"name": name} for name in contestants}, False

    monkeypatch.setattr(zoo, "measure", measure)
    assert zoo.main(["--methods", "fastcut", "--precision", "bfloat16", "--output", str(tmp_path)]) == 0
    assert {c.precision for c in asked} == {c.arguments["precision"] for c in asked} == {"bfloat16"}
    assert sorted(path.suffix for path in tmp_path.glob("zoo_bfloat16.*")) == [".json", ".md", ".png"]
    assert "![steps](zoo_bfloat16.png)" in (tmp_path / "zoo_bfloat16.md").read_text()


def test_a_wrong_step_is_named_and_not_timed(tmp_path, monkeypatch, capsys):
    wrong = {"status": "FAIL", "reason": "gradient of G: 0.5", "samples_s": []}
    monkeypatch.setattr(zoo, "measure", fake_measure(wrong, measured(1.0)))
    assert zoo.main(["--methods", "cut", "--output", str(tmp_path)]) == 1
    text = (tmp_path / "zoo.md").read_text()
    assert "| cut | – | **FAIL** | 1 (1–1) | – |" in text and "* **FAIL** cut, fused: gradient of G: 0.5" in text
    assert "gradient of G: 0.5" in capsys.readouterr().out


def test_ctrl_c_reports_what_was_measured(tmp_path, monkeypatch):
    unfinished = {"status": "ok", "reason": "", "samples_s": []}
    monkeypatch.setattr(zoo, "measure", fake_measure(unfinished, unfinished, interrupted=True))
    assert zoo.main(["--output", str(tmp_path)]) == 130
    result = json.loads((tmp_path / "zoo.json").read_text())
    assert result["interrupted"] and [row["method"] for row in result["rows"]] == ["cut"]
    assert "interrupted" in (tmp_path / "zoo.md").read_text() and (tmp_path / "zoo.png").exists()


def test_one_side_alone_gives_no_ratio():
    providers = {FUSED: measured(1.0), PLAIN: {"status": "error", "reason": "out of memory", "samples_s": []}}
    zoo_report.relate(providers)
    assert "speedup" not in providers[FUSED] and "memory_of_plain" not in providers[FUSED]


@pytest.mark.parametrize("arguments", [["--methods", "cut,cat"], ["--rounds", "0"], ["--precision", "float16"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        zoo.parse(arguments)
    assert arguments[0] in capsys.readouterr().err
