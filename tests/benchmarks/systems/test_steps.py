"""Whole steps: that every contestant computes what CUT's published form does, and how the table is made."""

import json
from functools import partial

import pytest
import torch
from support.method_steps import gradient

from benchmarks import curves, steps
from benchmarks.systems import step_report, turns
from benchmarks.systems.stock import OURS, PUBLISHED
from benchmarks.systems.stock_cut import CONTESTANTS, StockCUT
from benchmarks.systems.stock_layers import Style
from i2i.methods.cut import CUT, CUTConfig
from i2i.methods.fastcut import FastCUTConfig

SMALL = {"ngf": 16, "ndf": 16, "generator": "resnet_6blocks", "num_patches": 64}
TERMS = ("G_GAN", "D_real", "D_fake", "NCE", "NCE_Y", "G")
CPU = torch.device("cpu")


def images(step: int, size: int = 48, count: int = 1) -> list[torch.Tensor]:
    """Smooth ones."""
    generator = torch.Generator().manual_seed(step)
    coarse = [torch.rand(count, 3, 8, 8, generator=generator) for _ in range(2)]
    return [torch.nn.functional.interpolate(x, (size, size), mode="bilinear") * 2 - 1 for x in coarse]


def first_step(model, dtype: torch.dtype) -> tuple[dict[str, float], torch.Tensor]:
    """Losses, and the gradients of all networks in a row."""
    for net in model.networks.values():
        net.to(dtype)
    losses = model.step(*(x.to(dtype) for x in images(0, count=model.config.batch_size)))
    assert losses.keys() == set(TERMS) - ({"NCE_Y"} if not model.config.nce_idt else set())
    gradients = [gradient(p).double().flatten() for net in model.networks.values() for p in net.parameters()]
    return {name: float(loss.detach()) for name, loss in losses.items()}, torch.cat(gradients)


STYLES = [Style(), Style(careful=True), Style(careful=True, compiled=True)]
# FastCUT mirrors images in half the steps: in the first one with seed 0, not with seed 2
CONFIGS = {
    "CUT": CUTConfig,
    "CUT, two images": partial(CUTConfig, batch_size=2),
    "FastCUT": partial(FastCUTConfig, seed=2),
    "FastCUT, mirrored": FastCUTConfig,
}


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize(
    "system", ["CUT", "FastCUT", *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if "," in name)]
)
def test_stock_networks_compute_the_published_step(system, style, monkeypatch):
    """In float64, where only a difference in what is computed can show. Ours takes the reference there."""
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)  # the compiled style, uncompiled
    config = CONFIGS[system](crop_size=48, **SMALL)
    mirrors = float(torch.rand((), generator=torch.Generator().manual_seed(config.seed))) < 0.5
    assert system.startswith("CUT") or mirrors == (system == "FastCUT, mirrored")
    losses, gradients = first_step(StockCUT(config, CPU, style), torch.float64)
    wanted, exact = first_step(CUT(config), torch.float64)
    assert losses == pytest.approx(wanted, rel=1e-6)  # the least-squares loss is taken in float32
    assert (gradients - exact).norm() <= 1e-6 * exact.norm()


def test_the_fused_step_is_the_published_one():
    """A unit that crosses the kink of a ReLU by rounding changes float32 gradients by up to 4e-3 in all of them."""
    config = CUTConfig(crop_size=48, **SMALL)
    losses, gradients = first_step(CUT(config), torch.float32)
    wanted, exact = first_step(StockCUT(config, CPU, Style()), torch.float64)
    assert losses == pytest.approx(wanted, rel=2e-6)
    assert (gradients - exact).norm() <= 1e-2 * exact.norm()


@pytest.mark.slow  # a minute and more: three trainings of 100 steps
def test_loss_curves_agree_as_well_as_those_of_two_reference_runs():
    """100 steps of each. Adam's first step takes the sign even of a gradient that is rounding, so after some ten steps
    any two runs are as far apart as chance makes them: reference runs with one and two threads, too."""

    def curve(build, threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        model = build(CUTConfig(crop_size=48, **SMALL | {"ngf": 8, "ndf": 8}))
        steps = (model.step(*images(step)) for step in range(100))
        return torch.tensor([[float(losses[name].detach()) for name in TERMS] for losses in steps])

    before = torch.get_num_threads()
    try:
        one, two = (curve(lambda config: StockCUT(config, CPU, Style()), threads) for threads in (1, 2))
        fused = curve(CUT, 1)
    finally:
        torch.set_num_threads(before)
    distances = [float((fused - reference).abs().mean()) for reference in (one, two)]
    chance = float((one - two).abs().mean())
    assert 0.05 < chance < 0.3
    torch.testing.assert_close(fused[0], one[0], rtol=1e-5, atol=1e-6)
    assert sum(distances) / 2 <= 1.6 * chance  # 0.89 to 1.22 times for six seeds


@pytest.mark.slow  # 63 s in the whole run; the commands of zoo and curves run the same processes
def test_command_line(tmp_path, monkeypatch, capsys):
    """With a contestant that dies, which costs its own row."""
    monkeypatch.setitem(CONTESTANTS, "gone", CONTESTANTS[OURS])
    skipped = [f"--skip={name}" for name in CONTESTANTS if name not in (OURS, PUBLISHED, "gone")]
    assert steps.main(["--size", "64", "--rounds", "1", "--output", str(tmp_path), *skipped], SMALL) == 0
    result = json.loads((tmp_path / "step.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() == {OURS, PUBLISHED, "gone"}
    gone = rows.pop("gone")
    assert gone["status"] == "error" and "KeyError: 'gone'" in gone["reason"] and not gone["samples_s"]
    for row in rows.values():
        assert row["status"] == "ok" and len(row["samples_s"]) == 1 and row["peak_bytes"] > 2**27
        assert 0 < row["outside_convolutions"] < 1
    assert rows[PUBLISHED]["memory_of_published"] == 1
    assert rows[PUBLISHED]["ours_speedup"] == pytest.approx(rows[PUBLISHED]["median_s"] / rows[OURS]["median_s"])
    text = (tmp_path / "step.md").read_text()
    assert "| ours | " in text and "| published form | " in text and "![steps](step.png)" in text
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "step.md") in capsys.readouterr().out


def row(name: str, losses: dict[str, float], gradient: torch.Tensor, folder) -> dict:
    path = folder / f"{name}.pt"
    torch.save({"G": gradient}, path)
    return {"name": name, "status": "ok", "reason": "", "losses": losses, "samples_s": [], "path": path}


def judge(rows: dict[str, dict], *loss_limits: dict[str, float]) -> None:
    paths = {name: r["path"] for name, r in rows.items()}
    turns.judge(rows, paths, PUBLISHED, {name: CONTESTANTS[name].precision for name in rows}, *loss_limits)


def test_wrong_gradients_and_losses_are_named(tmp_path):
    right = torch.arange(1.0, 9.0)
    rows = {
        PUBLISHED: row(PUBLISHED, {"G": 2.0}, right, tmp_path),
        OURS: row(OURS, {"G": 2.1}, right, tmp_path),
        "ours, float32": row("ours, float32", {"G": 2.0}, right * 1.02, tmp_path),
        "careful Python": row("careful Python", {"G": 2.0}, right * 1.02, tmp_path),
    }
    judge(rows)
    assert rows[OURS]["status"] == "FAIL" and rows[OURS]["reason"] == "G: 2.1, published form 2"
    assert rows["ours, float32"]["reason"] == "gradient of G: 0.02"
    assert rows["careful Python"]["status"] == rows[PUBLISHED]["status"] == "ok"


@pytest.mark.parametrize("distance, status", [(9e-4, "ok"), (1.1e-3, "FAIL")])
def test_losses_after_an_update_have_the_limit_of_the_cost_curves(distance, status, tmp_path):
    found = {
        name: row(name, {"G": 2.0 * (1 + distance * (name != PUBLISHED))}, torch.ones(1), tmp_path)
        for name in (PUBLISHED, "ours, float32")
    }
    judge(found, curves.LOSS_LIMITS)
    assert found["ours, float32"]["status"] == status


def test_nothing_passes_without_the_published_form(tmp_path):
    rows = {
        PUBLISHED: row(PUBLISHED, {}, torch.ones(1), tmp_path),
        OURS: row(OURS, {"G": 2.0}, torch.ones(1), tmp_path),
    }
    rows[PUBLISHED]["status"] = "error"
    rows[PUBLISHED]["path"].unlink()
    judge(rows)
    assert rows[OURS]["status"] == "error" and "nothing to compare with" in rows[OURS]["reason"]


def test_ctrl_c_reports_what_was_measured(tmp_path, monkeypatch, capsys):
    """After the first step of the first contestant; the processes are ended."""
    asked = []

    def interrupted(process, until):
        asked.append(process.process)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return {"first_step_s": 1.5, "losses": {}}

    monkeypatch.setattr(turns.Process, "receive", interrupted)
    skipped = [f"--skip={name}" for name in CONTESTANTS if name not in (OURS, PUBLISHED)]
    assert steps.main(["--size", "64", "--output", str(tmp_path), *skipped], SMALL) == 130
    assert "interrupted" in capsys.readouterr().err
    result = json.loads((tmp_path / "step.json").read_text())
    assert result["interrupted"] and result["rows"][0]["first_step_s"] == 1.5
    assert "interrupted" in (tmp_path / "step.md").read_text()
    assert len(asked) == 2 and all(process.poll() is not None for process in asked)


def test_losses_are_shown():
    rows = [
        {"name": OURS, "status": "ok", "reason": "", "median_s": 2.0, "p20_s": 2, "p80_s": 2, "first_step_s": 3.0},
        {"name": PUBLISHED, "status": "ok", "reason": "", "median_s": 1.0, "p20_s": 1, "p80_s": 1, "first_step_s": 3.0},
    ]
    step_report.relate(rows)
    assert "**loss 0.50x**" in step_report.text(rows)


def test_networks_without_an_update_agree_unless_one_has_it():
    nothing = torch.zeros(3)
    assert turns.distance(nothing, nothing) == 0
    assert turns.distance(torch.ones(3), nothing) > 1e30


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--size", "65"], ["--skip", OURS]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        steps.parse(arguments)
    assert arguments[0] in capsys.readouterr().err
