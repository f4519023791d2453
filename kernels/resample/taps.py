"""The operators as tables of taps, which the kernels gather by.

Every operator here is linear and separable: y = R x C^T for each plane, R and C sparse matrices, one for each axis. A
table holds the non-zeros of such a matrix row by row; the transposed matrix is the operator's gradient. Both directions
of all operators are thus one computation, a gather: an output is the sum of a few weighted inputs, in a fixed order,
and no two threads write one element.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from kernels.resample.spec import DOWN, PAD, UP, Spec, output_size

MOST_TAPS = 7  # of one output on one axis; the C++ kernel's arrays are made for it


class Taps(NamedTuple):
    """The rows of one axis' matrix: output j is the sum over t in [first[j], first[j + 1]) of weight[t] * in[index[t]].

    From `low` on, `groups` groups of `phases` outputs each repeat: their taps are consecutive inputs, with the same
    weights in every group, `step` further on in each.
    """

    first: np.ndarray  # int32
    index: np.ndarray  # int32
    weight: np.ndarray  # float32
    low: int
    groups: int
    phases: int
    step: int

    @property
    def outputs(self) -> int:
        return len(self.first) - 1


def margins(kind: int, parameters: tuple[int, int]) -> tuple[int, int]:
    """How many pixels are mirrored before and behind."""
    if kind == PAD:
        return parameters
    return ((parameters[0] - 1) // 2, parameters[0] // 2) if kind == DOWN else (0, 0)


def _entries(kind: int, parameters: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(output, input, weight) of every tap, both in ascending order of the taps; an input may come twice."""
    outputs = np.arange(output_size(kind, parameters, size))
    if kind == UP:  # even outputs lie 1/4 before, odd ones 1/4 behind their input; the last pixel is continued outwards
        near, far = outputs // 2, np.clip(outputs // 2 + 2 * (outputs % 2) - 1, 0, size - 1)
        at, weights = np.stack([near, far], 1), np.array([0.75, 0.25])
    else:
        count = parameters[0] if kind == DOWN else 1
        weights = np.array([math.comb(count - 1, t) for t in range(count)]) / 2.0 ** (count - 1)
        stride = 2 if kind == DOWN else 1
        at = np.abs(outputs[:, None] * stride + np.arange(count) - margins(kind, parameters)[0])
        at = (size - 1) - np.abs(size - 1 - at)
    return np.repeat(outputs, at.shape[1]), at.ravel(), np.tile(weights, len(outputs))


@functools.lru_cache(maxsize=1024)
def table(kind: int, parameters: tuple[int, int], size: int, transposed: bool) -> Taps:
    """The table of one axis; `size` is the operator's input, in either direction."""
    outputs, inputs, weights = _entries(kind, parameters, size)
    count, other = output_size(kind, parameters, size), size
    if transposed:
        outputs, inputs, count, other = inputs, outputs, other, count
    keys, places = np.unique(outputs.astype(np.int64) * other + inputs, return_inverse=True)
    weight = np.bincount(places, weights).astype(np.float32)
    index = (keys % other).astype(np.int32)
    first = np.searchsorted(keys, np.arange(count + 1, dtype=np.int64) * other).astype(np.int32)
    assert np.diff(first).max(initial=0) <= MOST_TAPS
    phases, step = (1, 1) if kind == PAD else (1, 2) if (kind == UP) == transposed else (2, 1)
    return Taps(first, index, weight, *_regular(first, index, weight, phases, step), phases, step)


def _regular(first: np.ndarray, index: np.ndarray, weight: np.ndarray, phases: int, step: int) -> tuple[int, int]:
    """(low, groups): the longest run of outputs whose taps repeat, shifted by `step`, after every `phases`."""
    count = len(first) - 1
    taps = np.diff(first)
    if count <= phases or not taps.all():
        return 0, 0
    consecutive = np.ones(count, dtype=bool)
    same = taps[phases:] == taps[:-phases]
    for t in range(taps.max()):
        here = np.minimum(first[:-1] + t, len(index) - 1)
        within = t < taps
        consecutive &= ~within | (index[here] == index[first[:-1]] + t)
        later, sooner = here[phases:], here[:-phases]
        same &= ~within[:-phases] | ((index[later] == index[sooner] + step) & (weight[later] == weight[sooner]))
    alike = same & consecutive[phases:] & consecutive[:-phases]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], alike, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    low = int(starts[longest])
    return low, (int(ends[longest]) + phases - low) // phases


def tables(spec: Spec) -> tuple[Taps, Taps]:
    """Of the rows and of the columns."""
    return (
        table(spec.kind, spec.rows, spec.height, spec.transposed),
        table(spec.kind, spec.columns, spec.width, spec.transposed),
    )
