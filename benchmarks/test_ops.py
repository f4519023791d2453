"""The selection for pytest-benchmark: `pytest benchmarks --benchmark-only`; with `--benchmark-disable` each runs once.

Wall time only, every call synchronised on a CUDA device; device times come from `python -m benchmarks`.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from benchmarks.engine.gate import Gate
from benchmarks.engine.suite import check
from benchmarks.engine.work import FUSED, INTO, MODES, Work
from benchmarks.ops.norm import SUITE

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS = [(case, backward) for case in SUITE.cases(False, (), ()) for backward in SUITE.modes(case)]


@functools.lru_cache(maxsize=1)  # the rows of one case follow each other
def _prepared(case: Any) -> tuple[Work, Gate]:
    given = SUITE.work(case, DEVICE)
    return given, Gate(case.label, case.dtype, given)


@pytest.mark.parametrize("name", SUITE.about)
@pytest.mark.parametrize(
    "case,backward", ROWS, ids=[f"{case.label} {MODES[backward]}".replace(" ", "-") for case, backward in ROWS]
)
def test_op(benchmark, case: Any, backward: bool, name: str) -> None:
    given, gate = _prepared(case)
    contestant = given.contestants.get(name)
    if contestant is None or backward not in contestant.modes:
        pytest.skip("does not exist in this row")
    torch.compiler.reset()
    mine = given.copied(contiguous=contestant.contiguous)
    function, result = check(contestant, mine, backward, gate)
    if result["status"] == "absent":
        pytest.skip(result["reason"])
    if result["status"] == "FAIL" and name not in (FUSED, INTO):
        pytest.xfail(result["reason"])  # a baseline's defect, such as torch's own at N = 1 in channels_last
    assert result["status"] == "ok", result["reason"]

    call = mine.timed(function, backward)

    def synchronised() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{case.label} {MODES[backward]}"
    benchmark.extra_info |= {"provider": name, "device": DEVICE.type, "torch": torch.__version__}
    with torch.set_grad_enabled(backward):
        benchmark(synchronised)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["gb_per_s"] = SUITE.necessary_bytes(case, backward) / benchmark.stats.stats.median / 1e9
