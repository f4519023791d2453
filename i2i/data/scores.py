"""Arithmetic that scores of images share."""

from __future__ import annotations

import math
from collections.abc import Sequence


def peak_ratio(error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, of a mean squared error and the range of values; infinite for no error."""
    return 10 * math.log10(peak**2 / error) if error else math.inf


def finite_mean(values: Sequence[float]) -> float:
    """Without what is infinite, which one picture equal to its answer would make of the whole; infinite if all are."""
    finite = [value for value in values if value != math.inf]
    return sum(finite) / len(finite) if finite else math.inf
