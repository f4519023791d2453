"""The selection for pytest-benchmark: `pytest benchmarks --benchmark-only`; with `--benchmark-disable` each runs once.

Wall time only, every call synchronised on a CUDA device; device times come from `python -m benchmarks`.
"""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.engine.gate import Gate
from benchmarks.engine.runner import bind
from benchmarks.ops.norm import FUSED, INTO, PROVIDERS, Provider
from benchmarks.ops.norm_cases import Case, Inputs, Row, cases, make_inputs, necessary_bytes, rows
from kernels import BackendUnavailable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS = [row for case in cases(full=False) for row in rows(case)]


@functools.lru_cache(maxsize=1)  # the rows of one case follow each other
def _prepared(case: Case) -> tuple[Inputs, Gate]:
    inputs = make_inputs(case, DEVICE)
    return inputs, Gate(case, inputs)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label.replace(" ", "-"))
def test_op(benchmark, row: Row, provider: Provider) -> None:
    function = provider.build(row)
    if function is None:
        pytest.skip("does not exist in this row")
    inputs, gate = _prepared(row.case)
    arranged = inputs.arranged(row.channels_last and not provider.nchw, row.backward)
    try:
        verdict = gate.judge(function, arranged, row.backward)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    if not verdict.passed and provider.name not in (FUSED, INTO):
        pytest.xfail(f"FAIL: {verdict.reason}")  # a baseline's defect, such as torch's own at N = 1 in channels_last
    assert verdict.passed, verdict.reason

    call = bind(function, arranged, row.backward)

    def synchronised() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = row.label
    benchmark.extra_info |= {"provider": provider.name, "device": DEVICE.type, "torch": torch.__version__}
    with torch.set_grad_enabled(row.backward):
        benchmark(synchronised)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["gb_per_s"] = necessary_bytes(row) / benchmark.stats.stats.median / 1e9
