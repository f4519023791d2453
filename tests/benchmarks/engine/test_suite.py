"""From cases to rows: what a contestant that raises costs, when a row is noisy."""

from __future__ import annotations

from support.norm_suite import CPU, WITHOUT_COMPILE, changed, measured, tiny_cases

from benchmarks.engine import suite
from benchmarks.engine.work import FUSED
from benchmarks.ops.norm import SUITE


def test_a_contestant_that_raises_costs_only_its_cell():
    def broken(function):
        def run(*tensors):
            raise RuntimeError("compiler crashed")

        return run

    (row, *_) = measured(changed("broken", broken), "adain")
    assert row["providers"]["broken"] == {"status": "error", "reason": "RuntimeError: compiler crashed"}
    assert row["providers"][FUSED]["status"] == "ok"


def test_a_row_is_noisy_when_disturbed_rounds_are_among_its_samples(monkeypatch):
    """As `interleave` decides: fewer than half of the rounds that were asked for were calm."""
    counts = iter([(6, 3), (6, 4), (4, 0), (6, 5)])  # (ran, disturbed) of 4 rounds: three, two, four calm ones and one
    real = suite.interleave

    def interleave(timings, rounds):
        real(timings, 1)
        return next(counts)

    monkeypatch.setattr(suite, "interleave", interleave)
    rows = suite.run(SUITE, tiny_cases("adain")[:2], CPU, 4, WITHOUT_COMPILE)
    assert [row["noisy"] for row in rows] == [False, False, False, True]
