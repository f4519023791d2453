"""From one thread to more: what is measured, and that rows which gain nothing are named."""

from __future__ import annotations

import pytest
import torch
from support.norm_suite import CPU, SUITE, WITHOUT_COMPILE, assembled, measured, tiny_cases

from benchmarks.engine import report, scaling, suite
from benchmarks.engine.work import FUSED


@pytest.fixture
def threads():
    """threads(n): torch's number; the conftest puts it back."""
    return torch.set_num_threads


def test_powers_of_two_and_all():
    assert scaling.counts(1) == [1]
    assert scaling.counts(2) == [1, 2]
    assert scaling.counts(6) == [1, 2, 4, 6]
    assert scaling.counts(16) == [1, 2, 4, 8, 16]


def test_the_call_runs_with_every_number_of_threads(threads):
    threads(3)
    seen = []
    found = scaling.measure(lambda: seen.append((torch.get_num_threads(), torch.is_grad_enabled())), grad=True)
    assert set(seen) == {(1, True), (2, True), (3, True)} and torch.get_num_threads() == 3
    assert list(found["threads"]) == ["1", "2", "3"] and found["rounds"] >= scaling.ROUNDS
    one = found["threads"]["1"]
    assert one["efficiency"] == 1
    for n, each in found["threads"].items():
        assert each["efficiency"] == pytest.approx(one["median_ms"] / (int(n) * each["median_ms"]))
        assert each["p20_ms"] <= each["median_ms"] <= each["p80_ms"]
        assert 2 * len(each["samples_ms"]) >= scaling.ROUNDS  # disturbed rounds are left out


def test_the_number_of_threads_comes_back_after_an_error(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        scaling.measure(lambda: 1 / 0, grad=False)
    assert torch.get_num_threads() == 2


def test_one_thread_has_nothing_to_compare():
    assert torch.get_num_threads() == 1 and scaling.measure(lambda: None, grad=False) == {}
    rows = measured(SUITE, "adain")
    text = report.markdown(SUITE, assembled(SUITE, rows))
    assert "From one thread to more" not in text and "efficiency" not in text


def test_rows_have_it_and_the_report_shows_it(threads):
    threads(2)
    rows = list(suite.run(SUITE, tiny_cases("adain")[:2], CPU, 1, WITHOUT_COMPILE))
    for row in rows:
        assert list(row["scaling"]["threads"]) == ["1", "2"] and row["providers"][FUSED]["status"] == "ok"
        row["scaling"] |= {"noisy": False}
        row["scaling"]["threads"]["2"]["efficiency"] = 0.9
    rows[1]["scaling"]["threads"]["2"]["efficiency"] = 0.45
    rows[1]["scaling"]["noisy"] = True
    del rows[2]["scaling"]  # as in results of before
    text = report.markdown(SUITE, assembled(SUITE, rows))
    first, second = (row["mode"] for row in rows[:2])
    assert f"| adain {first} | **0.90** (0.90 to 0.90, " in text and f"| adain {second} | **" in text
    assert "(0.45 to 0.90, " in text and "Not faster than with one thread (1):" in text
    assert f"* {rows[1]['label']} {second}: 0.90x with 2, noisy\n" in text
    assert "| efficiency, 2 threads | rounds |" in text
    assert text.count("| 0.90 | ") == len(rows) - 2 and "| 0.45, **noisy** | " in text
