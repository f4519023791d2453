"""Clocks, interleaving and memory.

CPU: wall time of repeated calls. CUDA: device time of a CUDA graph of one call, each replay behind a write to twice the
L2 cache, so that nothing is found there; wall time per eager call is a second figure.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.engine.work import Json

Call = Callable[[], object]

MIN_SAMPLE_MS = 2.0
DISTURBED = 0.05  # share of a round that our threads may spend waiting for a core
EXTRA_ROUNDS = 0.5  # of the asked number, to replace disturbed ones


@dataclass
class Timing:
    """What a clock times: a contestant's work, or a copy."""

    name: str
    call: Call
    grad: bool = False  # whether autograd records
    # a clock's prepare() sets these: sample(n) returns milliseconds per call; n = repetitions lasts MIN_SAMPLE_MS
    sample: Callable[[int], float] = field(init=False)
    repetitions: int = field(init=False)
    samples_ms: list[float] = field(default_factory=list)


class WallClock:
    """Milliseconds per call by the host's clock."""

    def prepare(self, timing: Timing) -> None:
        call = timing.call

        def sample(n: int) -> float:
            with torch.set_grad_enabled(timing.grad):
                start = time.perf_counter()
                for _ in range(n):
                    call()
                return (time.perf_counter() - start) * 1e3 / n

        with torch.set_grad_enabled(timing.grad):  # the first touch of memory and caches
            call()
        timing.sample, timing.repetitions = sample, _repetitions(sample)


class DeviceClock:
    """Milliseconds per call on the device: replays of a CUDA graph of the call, each between two events of its own.
    Before the first of them twice the size of the L2 cache is written. That takes longer than the host needs to hand
    over what follows, so the device waits for nobody between the events; and it leaves the cache full of what has to
    be written back, as the rest of a training step does."""

    def __init__(self, device: torch.device) -> None:
        self._cache = torch.empty(
            2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device
        )

    def prepare(self, timing: Timing) -> None:
        side = torch.cuda.Stream()  # warm-up off the default stream, as capture asks
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.set_grad_enabled(timing.grad):
            for _ in range(3):
                timing.call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.set_grad_enabled(timing.grad):
            timing.call()

        def sample(n: int) -> float:
            events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(n)]
            for begin, end in events:
                self._cache.zero_()
                begin.record()
                graph.replay()
                end.record()
            torch.cuda.synchronize()
            return sum(begin.elapsed_time(end) for begin, end in events) / n

        # each call is timed for itself, so that short samples will do; and most of their time goes into the cache
        timing.sample, timing.repetitions = sample, _repetitions(sample, most=100)


def clock(device: torch.device) -> WallClock | DeviceClock:
    return DeviceClock(device) if device.type == "cuda" else WallClock()


def _repetitions(sample: Callable[[int], float], most: int = 1 << 16) -> int:
    n = 1
    while (took := sample(n) * n) < MIN_SAMPLE_MS and n < most:
        n = min(most, max(n + 1, min(8 * n, int(1.2 * n * MIN_SAMPLE_MS / max(took, 1e-3)))))
    return n


def wall_us_per_call(timing: Timing, calls: int = 30) -> float:
    """What one eager call costs the program on a CUDA machine: many calls, one synchronisation."""
    times = []
    with torch.set_grad_enabled(timing.grad):
        for _ in range(3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                timing.call()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e6 / calls)
    return statistics.median(times)


def interleave(timings: Sequence[Timing], rounds: int) -> tuple[int, int]:
    """Times all prepared timings in turn, A B C A B C, into their `samples_ms`; (rounds run, rounds disturbed).

    The first round is thrown away. Disturbed rounds are replaced while EXTRA_ROUNDS lasts and left out of the samples,
    unless fewer than half of the rounds were calm: then all are kept, and the counts say so.
    """
    calm: list[list[float]] = []
    disturbed: list[list[float]] = []
    watch = Disturbance()
    with _no_collection():
        for i in range(1 + rounds + int(rounds * EXTRA_ROUNDS)):
            watch.start()
            times = [timing.sample(timing.repetitions) for timing in timings]
            if i:
                (disturbed if watch.stop() > DISTURBED else calm).append(times)
            if len(calm) == rounds:
                break
    kept = calm if 2 * len(calm) >= rounds else calm + disturbed
    for timing, times in zip(timings, zip(*kept)):
        timing.samples_ms = list(times)
    return len(calm) + len(disturbed), len(disturbed)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Disturbance:
    """How long this process's threads waited for a core that another process had (Linux scheduler statistics), as a
    share of the time that passed. 0 where the system does not tell."""

    def start(self) -> None:
        self._began, self._waited = time.perf_counter_ns(), self._waiting_ns()

    def stop(self) -> float:
        return (self._waiting_ns() - self._waited) / max(1, time.perf_counter_ns() - self._began)

    @staticmethod
    def _waiting_ns() -> int:
        total = 0
        with contextlib.suppress(OSError):
            for task in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that just ended
                    total += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
        return total


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """20th percentile, median, 80th percentile."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return tenths[1], statistics.median(samples), tenths[7]


# ---- kernels and memory ----------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """What the device did at one go."""

    name: str
    microseconds: float


def device_kernels(call: Call, device: torch.device) -> list[Kernel]:
    """Kernels, copies and fills that a CUDA device ran for call(), also out of graphs; [] where the profiler sees
    nothing of the device."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with _silent_stderr():
        with torch.profiler.profile(activities=kinds) as profile:
            call()
            torch.cuda.synchronize(device)
        trace = trace_of(profile)
    return kernels_of(trace)


def kernels_of(trace: Json) -> list[Kernel]:
    """Of a profiler's trace."""
    ran = [event for event in trace["traceEvents"] if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    return [Kernel(event["name"], event["dur"]) for event in ran]


def trace_of(profile: torch.profiler.profile) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        return json.loads(path.read_text())


def peak_bytes(call: Call, grad: bool, device: torch.device) -> int:
    """Most tensor memory alive at once during `call` beyond what was there before.

    CPU: the profiler's record of every allocation and release by torch's CPU allocator, summed up in order. CUDA: the
    caching allocator's own peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.set_grad_enabled(grad):
            call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _silent_stderr():
        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
            torch.set_grad_enabled(grad),
        ):
            call()
        trace = trace_of(profile)
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        total += event["args"]["Bytes"]
        peak = max(peak, total)
    return peak


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler of torch 2.13 writes a line to descriptor 2 at each start and stop; no setting turns that off."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
