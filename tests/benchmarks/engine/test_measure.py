"""Rounds, spread and memory of what is timed."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.engine import measure
from benchmarks.engine.measure import Timing, WallClock, interleave, peak_bytes, spread


def test_rounds_are_interleaved():
    order: list[str] = []
    timings = [Timing(name, lambda name=name: (order.append(name), time.sleep(0.003))) for name in "ab"]
    for timing in timings:
        WallClock().prepare(timing)
    order.clear()
    interleave(timings, rounds=3)
    assert all(timing.repetitions == 1 for timing in timings)
    assert order == ["a", "b"] * (len(order) // 2) and len(order) >= 8  # one discarded round and three kept
    # two: of three rounds, one that other processes disturbed may be missing
    assert all(len(timing.samples_ms) >= 2 and min(timing.samples_ms) >= 3 for timing in timings)


@pytest.mark.parametrize(
    "disturbed, kept, counts",
    [
        ([0, 1, 0, 0, 1, 0], [1, 3, 4, 6], (6, 2)),  # replaced, and left out
        ([0, 1, 1, 0, 1, 1], [1, 4], (6, 4)),  # half were calm: they are enough
        ([1, 1, 1, 0, 1, 1], [4, 1, 2, 3, 5, 6], (6, 5)),  # fewer: all are kept
    ],
)
def test_disturbed_rounds_are_replaced_while_half_are_calm(monkeypatch, disturbed, kept, counts):
    shares = iter([2 * measure.DISTURBED * d for d in disturbed])
    monkeypatch.setattr(measure.Disturbance, "start", lambda self: None)
    monkeypatch.setattr(measure.Disturbance, "stop", lambda self: next(shares))
    samples = iter(range(99))
    timing = Timing("a", lambda: None)
    timing.sample, timing.repetitions = lambda n: next(samples), 1
    assert interleave([timing], rounds=4) == counts and timing.samples_ms == kept


def test_spread():
    assert spread([4.0]) == (4.0, 4.0, 4.0)
    assert spread([float(i) for i in range(11)]) == (2.0, 5.0, 8.0)


def test_peak_memory_counts_temporaries_and_forgets_what_was_freed():
    def call():
        for _ in range(3):
            a = torch.zeros(1 << 18)  # 1 MiB
            b = a + 1
            del a, b

    assert 0 <= peak_bytes(call, False, torch.device("cpu")) - (2 << 20) < 1024  # and a scalar or two
