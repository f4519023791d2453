"""Rounds, spread and memory of what is timed."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.engine import measure
from benchmarks.engine.measure import DeviceClock, Timing, WallClock, interleave, peak_bytes, spread

CPU = torch.device("cpu")


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


# ---- on a CUDA device, with stand-ins for torch.cuda -----------------------------------------------------------------


class Cuda:
    """A device that is busy for a while, in milliseconds, with whatever it is given: `ran` says with what."""

    def __init__(self, monkeypatch):
        self.now, self.ran, self.recording = 0.0, [], None
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = cuda.now

            def elapsed_time(self, end):
                return end.at - self.at

        class Graph:
            def replay(self):
                for work in self.work:
                    cuda.run(*work)

        @contextlib.contextmanager
        def graph(made):
            cuda.recording = []
            yield
            made.work, cuda.recording = cuda.recording, None

        properties = SimpleNamespace(L2_cache_size=512)
        stream = SimpleNamespace(wait_stream=lambda other: None)
        replaced = {
            "get_device_properties": lambda device: properties,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda given: contextlib.nullcontext(),
            "synchronize": lambda *device: None,
            "CUDAGraph": Graph,
            "graph": graph,
            "Event": Event,
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def run(self, name: str, milliseconds: float) -> None:
        if self.recording is not None:
            self.recording.append((name, milliseconds))
        else:
            self.ran.append(name)
            self.now += milliseconds


def test_a_device_is_timed_behind_a_full_cache(monkeypatch):
    cuda = Cuda(monkeypatch)
    clock = DeviceClock(CPU)
    assert clock._cache.nbytes == 2 * 512
    clock._cache = SimpleNamespace(zero_=lambda: cuda.run("flush", 5.0))
    timing = Timing("a", lambda: cuda.run("call", 0.125))
    clock.prepare(timing)
    assert timing.repetitions == 2  # of 0.125 ms, for the 0.2 ms that conftest.py asks for
    cuda.ran.clear()
    assert timing.sample(3) == pytest.approx(0.125)  # without the flushes
    assert cuda.ran == ["flush", "call"] * 3
    short = Timing("b", lambda: cuda.run("call", 1e-6))
    clock.prepare(short)
    assert short.repetitions == 100


def test_each_device_has_its_clock(monkeypatch):
    Cuda(monkeypatch)
    assert isinstance(measure.clock(CPU), WallClock)
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: device)
    assert isinstance(measure.clock(torch.device("cuda")), DeviceClock)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_what_the_device_ran_is_read_from_a_trace(monkeypatch):
    """Of kernels, copies and fills; not annotations, nor what the host did."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    events = [
        {"cat": "kernel", "name": "kernel", "dur": 2.5},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 1.0},
        {"cat": "gpu_memset", "name": "Memset (Device)", "dur": 0.5},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step", "dur": 9.0},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 4.0},
        {"ph": "M", "name": "process_name"},
    ]
    assert measure.kernels_of({"traceEvents": events}) == [
        ("kernel", 2.5),
        ("Memcpy HtoD", 1.0),
        ("Memset (Device)", 0.5),
    ]
    assert measure.device_kernels(lambda: torch.ones(3) + 1, torch.device("cuda")) == []  # none is here
    assert waited == [torch.device("cuda")]
