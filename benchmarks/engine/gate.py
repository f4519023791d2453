"""The correctness gate: no provider is timed before its result was compared with float64.

Every output and gradient may be at most twice as far from the float64 reference as that of eager NCHW in the same
dtype, plus a floor. Distance is the larger of two relative errors, in the 2-norm (wrong everywhere by a little) and in
the maximum norm (wrong in one place).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from benchmarks.ops.norm import PUBLISHED, Function, stock
from benchmarks.ops.norm_cases import Case, Inputs, fused

FACTOR = 2.0
# Below these a training run cannot tell: batch_norm on channels_last, for one, sums less carefully than instance_norm.
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# Eager NCHW itself must be this near, or case and reference do not mean the same thing.
SANE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}

Results = dict[str, torch.Tensor]


class OracleError(RuntimeError):
    """Eager NCHW and the float64 reference disagree: nothing can be judged in this case."""


def evaluate(function: Function, inputs: Inputs, names: Sequence[str], backward: bool) -> Results:
    """y and, with `backward`, the gradient of every tensor, by name."""
    with torch.set_grad_enabled(backward):
        y = function(*inputs.tensors)
    results = {"y": y.detach()}
    if backward:
        grads = torch.autograd.grad(y, inputs.tensors, inputs.grad)
        results |= {f"grad {name}": grad for name, grad in zip(names, grads)}
    return results


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """The larger of both relative errors; infinite where shapes differ or a value is not finite."""
    if got.shape != want.shape:
        return math.inf
    difference = got.double() - want
    errors = [
        float(torch.linalg.vector_norm(difference, order)) / max(float(torch.linalg.vector_norm(want, order)), 1e-30)
        for order in (2, math.inf)
    ]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


class Verdict(NamedTuple):
    passed: bool
    errors: dict[str, float]
    reason: str  # empty when passed


class Gate:
    """Reference and limits of one case."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        names = case.op.tensors
        self._names = names
        self._dtype = case.dtype
        self._reference = evaluate(fused(case, "reference"), inputs.double(), names, backward=True)
        eager = stock(case, PUBLISHED[case.op.kernel], inplace=True)
        oracle = evaluate(eager, inputs.arranged(False, True), names, backward=True)
        self.eager_errors = {name: distance(oracle[name], want) for name, want in self._reference.items()}
        off = {name: error for name, error in self.eager_errors.items() if not error <= SANE[case.dtype]}
        if off:
            raise OracleError(f"{case.label}: eager NCHW is off the float64 reference by {off}")
        self.limits = {name: FACTOR * error + FLOOR[case.dtype] for name, error in self.eager_errors.items()}

    def judge(self, function: Function, inputs: Inputs, backward: bool) -> Verdict:
        results = evaluate(function, inputs, self._names, backward)
        errors = {name: distance(got, self._reference[name]) for name, got in results.items()}
        reasons = [
            f"{name}: relative error {error:.2g}, limit {self.limits[name]:.2g}"
            for name, error in errors.items()
            if not error <= self.limits[name]
        ]
        if results["y"].dtype != self._dtype:
            reasons.append(f"y: {results['y'].dtype}, want {self._dtype}")
        return Verdict(not reasons, errors, "; ".join(reasons))
