"""The correctness gate: nothing is timed before its results were compared with float64.

The published form on contiguous tensors is the measure. In float64 it gives the exact results; in the case's dtype its
own errors, which must be sane, give the limits: every output and gradient of a contestant may be at most twice as far
from the exact one, plus a floor. Distance is the larger of two relative errors, in the 2-norm (wrong everywhere by a
little) and in the maximum norm (wrong in one place).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from benchmarks.engine.work import EAGER, Work

FACTOR = 2.0
# Below these a training run cannot tell: batch_norm on channels_last, for one, sums less carefully than instance_norm.
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# The published form itself must be this near, or a defect of it would widen everybody's limits; a Work whose arithmetic
# loses more digits says so in `sane`. No limit is wider than WIDEST: a result of zeros has a relative error of 1.
SANE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
WIDEST = 0.75


class OracleError(RuntimeError):
    """The published form in the case's dtype is far from itself in float64: nothing can be judged in this case."""


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
    errors: list[float]
    reason: str  # empty when passed


class Gate:
    """Exact results of one case, and how far each contestant's may be from them."""

    def __init__(self, label: str, dtype: torch.dtype, given: Work) -> None:
        eager = given.contestants[EAGER].function
        self._exact = given.copied(torch.float64, contiguous=True).call(eager, True)
        own = given.copied(contiguous=True).call(eager, True)
        self._names = given.names or tuple(f"result {i}" for i in range(len(own)))
        self._outputs = len(given.grads)
        self._dtypes = {dtype, torch.float32} if given.wide else {dtype}
        errors = list(map(distance, own, self._exact))
        sane = given.sane or SANE[dtype]
        off = {name: error for name, error in zip(self._names, errors) if not error <= sane}
        if off:
            raise OracleError(f"{label}: {EAGER} is off itself in float64 by {off}")
        self.limits = [min(FACTOR * error + FLOOR[dtype], WIDEST) for error in errors]

    def judge(self, results: Sequence[torch.Tensor]) -> Verdict:
        """`results`: all outputs, and after them all gradients if there are any."""
        counts = self._outputs, len(self._exact)
        if len(results) not in counts:
            return Verdict(False, [], f"{len(results)} results, want {counts[0]}, or {counts[1]} with gradients")
        errors = list(map(distance, results, self._exact))
        reasons = [
            f"{name}: relative error {error:.2g}, limit {limit:.2g}"
            for name, error, limit in zip(self._names, errors, self.limits)
            if not error <= limit
        ]
        reasons += [
            f"{name}: {got.dtype}, want {' or '.join(sorted(map(str, self._dtypes)))}"
            for name, got in zip(self._names[: self._outputs], results)
            if got.dtype not in self._dtypes
        ]
        return Verdict(not reasons, errors, "; ".join(reasons))
