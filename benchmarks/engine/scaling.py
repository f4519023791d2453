"""How a call's time falls with the number of threads: measured for the fused contestant of every row, on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.engine.measure import Timing, WallClock, interleave, spread
from benchmarks.engine.work import FUSED, Json

ROUNDS = 3  # beside the row's own ones: what is compared are times of these alone


def counts(most: int) -> list[int]:
    """1, 2, 4, ... threads, and `most`."""
    return [*(2**i for i in range((most - 1).bit_length())), most]


def measure(call: Callable[[], object], grad: bool) -> Json:
    """Milliseconds for every number of threads up to torch's, in turn; {} where that is one.

    efficiency: t(1) / (n t(n)); 1 is perfect, 1 / n no gain. `noisy`: as in the row, other processes took our cores.
    """
    most = torch.get_num_threads()
    if most == 1:
        return {}
    clock, timings = WallClock(), []
    try:
        for threads in counts(most):
            timing = Timing(FUSED, call, grad)
            torch.set_num_threads(threads)
            clock.prepare(timing)
            timing.sample = _with_threads(threads, timing.sample, call, grad)
            timings.append(timing)
        ran, disturbed = interleave(timings, ROUNDS)
    finally:
        torch.set_num_threads(most)
    one = spread(timings[0].samples_ms)[1]
    by_threads = {}
    for threads, timing in zip(counts(most), timings):
        low, median, high = spread(timing.samples_ms)
        by_threads[str(threads)] = {
            "median_ms": median,
            "p20_ms": low,
            "p80_ms": high,
            "samples_ms": timing.samples_ms,
            "efficiency": one / (threads * median),
        }
    noisy = 2 * (ran - disturbed) < ROUNDS
    return {"threads": by_threads, "rounds": ran, "rounds_disturbed": disturbed, "noisy": noisy}


def _with_threads(
    threads: int, sample: Callable[[int], float], call: Callable[[], object], grad: bool
) -> Callable[[int], float]:
    """The first call after a change of their number makes or ends threads: it is not timed."""

    def run(repetitions: int) -> float:
        torch.set_num_threads(threads)
        with torch.set_grad_enabled(grad):
            call()
        return sample(repetitions)

    return run
