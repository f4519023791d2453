"""Rows to text and pictures: losses are shown, committed results can be rendered again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from support.norm_suite import assembled, changed, measured

from benchmarks import __main__ as cli
from benchmarks.engine import plot, report
from benchmarks.engine.work import EAGER, FUSED
from benchmarks.outside import report as foreign_report
from benchmarks.systems import curve_report, step_report, zoo_report

ROOT = Path(__file__).resolve().parents[3]


SUITES = {suite.name: suite for suite in cli.SUITES}
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))


# Drawing takes seconds: of each kind of file one, the rest when asked for.
FIRST = [path for i, path in enumerate(COMMITTED) if path.name not in {before.name for before in COMMITTED[:i]}]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path in FIRST else pytest.mark.slow) for path in COMMITTED],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_committed_results_can_be_rendered_again(path):
    """The schema of results does not change under those that are committed."""
    result = json.loads(path.read_text())
    image = None
    if path.stem in SUITES:
        suite = SUITES[path.stem]
        text, image = report.markdown(suite, result), plot.speedups(suite, result)
        assert report.summarise(suite, result["rows"]).keys() == result["summary"].keys()
    elif path.stem.startswith("foreign"):  # has no picture
        text = foreign_report.markdown(result)
    else:
        module = {"step": step_report, "curves": curve_report, "zoo": zoo_report}[path.stem.split("_")[0]]
        text, image = module.markdown(result), module.picture(result)
    assert f"{result['versions']['torch']}" in text
    assert image.startswith(b"\x89PNG") if image else not path.with_suffix(".png").exists()
    assert len(COMMITTED) >= 5


def slowed(function):
    def run(*tensors):
        time.sleep(0.02)
        return function(*tensors)

    return run


def test_loss_is_shown():
    chosen = changed(FUSED, slowed)
    done = measured(chosen, "munit_layer_norm_relu")
    assert all(row["providers"][EAGER]["loss"] for row in done)
    result = assembled(chosen, done)
    assert len([loss for loss in result["summary"]["losses"] if loss["baseline"] == EAGER]) == len(done)
    text = report.markdown(chosen, result)
    assert "against eager: munit_layer_norm_relu 2x5x9x7 float32 contiguous fwd" in text
    assert "**loss 0." in text
    assert plot.speedups(chosen, result).startswith(b"\x89PNG")
