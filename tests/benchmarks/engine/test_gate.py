"""The gate: what is wrong, of another dtype or judged by a wrong measure gets no number."""

from __future__ import annotations

import pytest
import torch
from support.norm_suite import CPU, assembled, changed, measured, off_in_one_element, tiny_cases

import kernels
from benchmarks.engine import gate, report
from benchmarks.engine.work import EAGER, Contestant, Work
from benchmarks.ops.norm import SUITE, work


def test_a_wrong_contestant_fails_without_a_number():
    chosen = changed("wrong", off_in_one_element)
    done = measured(chosen, "instance_norm")
    assert len(done) == 8
    for row in done:
        result = row["providers"]["wrong"]
        assert result["status"] == "FAIL"
        assert "y: relative error" in result["reason"]
        assert not {"median_ms", "samples_ms", "fused_speedup", "percent_of_copy"} & result.keys()
    result = assembled(chosen, done)
    assert len([f for f in result["summary"]["failures"] if f["provider"] == "wrong"]) == len(done)
    assert not any("wrong" in by_name for by_name in result["summary"]["speedups"].values())
    text = report.markdown(chosen, result)
    assert "* **FAIL** wrong: instance_norm 2x5x9x7 float32 contiguous fwd: y: relative error" in text


def test_case_without_an_oracle_is_reported(monkeypatch, capsys):
    """A published form that is far from itself in float64 must not widen everybody's limits."""
    monkeypatch.setattr(gate, "SANE", {torch.float32: 0.0, torch.bfloat16: 0.1})
    done = measured(SUITE, "adain")
    assert [("error" in row) for row in done] == [True] * 4 + [False] * 4
    result = assembled(SUITE, done)
    assert "eager is off itself in float64" in report.markdown(SUITE, result)
    assert "eager is off itself in float64" in capsys.readouterr().err


def test_the_dtype_of_a_result_is_judged():
    chosen = changed("wider", lambda function: lambda *tensors: [y.float() for y in function(*tensors)])
    statuses = {row["dtype"]: row["providers"]["wider"] for row in measured(chosen, "instance_norm")}
    assert statuses["float32"]["status"] == "ok"
    assert statuses["bfloat16"]["reason"] == "y: torch.float32, want torch.bfloat16"


@pytest.mark.parametrize("wide", [False, True])
def test_only_losses_may_be_wider_than_their_case(wide):
    def narrow(x):
        return [x.mean()]

    contestants = {EAGER: Contestant(narrow)}
    x, grad = torch.ones(4, dtype=torch.bfloat16), torch.ones(())
    given = Work((x,), (0,), (grad,), contestants, wide=wide)
    verdict = gate.Gate("mean", torch.bfloat16, given).judge(given.copied().call(lambda x: [x.float().mean()], True))
    assert verdict.passed == wide and ("want torch.bfloat16" in verdict.reason) != wide


def test_a_result_of_zeros_passes_no_gate():
    """Not even where the published form is half wrong, as PatchNCE's gradients in bfloat16 are."""

    def coarse(x):
        return [x * (1 if x.dtype == torch.float64 else 1.55)]

    given = Work((torch.ones(4),), (0,), (torch.ones(4),), {EAGER: Contestant(coarse)}, sane=0.6)
    judge = gate.Gate("coarse", torch.float32, given).judge
    assert judge(given.copied().call(coarse, True)).passed
    assert judge([torch.ones(4), torch.zeros(4)]).reason == "result 1: relative error 1, limit 0.75"


def test_a_missing_result_is_no_right_one():
    def two(x):
        return [x, 2 * x]

    given = Work((torch.ones(4),), (0,), (torch.ones(4), torch.ones(4)), {EAGER: Contestant(two)})
    judge = gate.Gate("two", torch.float32, given).judge
    assert judge(two(torch.ones(4))).passed and judge([*two(torch.ones(4)), torch.full((4,), 3.0)]).passed
    assert judge(two(torch.ones(4))[:1]).reason == "1 results, want 2, or 3 with gradients"


def test_a_defect_of_the_published_form_widens_no_limit():
    """Only its float32 result is wrong here, as that of a stock operator with a defect would be."""

    def defective(x):
        return [x * (2 if x.dtype == torch.float64 else 2.1)]

    given = Work((torch.ones(4),), (0,), (torch.ones(4),), {EAGER: Contestant(defective)})
    with pytest.raises(gate.OracleError, match="double: eager is off itself in float64 by {'result 0': 0.0"):
        gate.Gate("double", torch.float32, given)


def test_gate_looks_at_every_gradient():
    case = tiny_cases("adaptive_instance_norm_relu")[0]
    given = work(case, CPU)

    def detached_shift(x, scale, shift):
        return [kernels.adaptive_instance_norm(x, scale, 2 * shift - shift.detach(), activation="relu")]

    verdict = gate.Gate(case.label, case.dtype, given).judge(given.copied().call(detached_shift, True))
    assert not verdict.passed
    assert verdict.reason.startswith("grad shift")
