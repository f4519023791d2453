"""Measuring in tests is quick; timings themselves are not asserted."""

import pytest
import torch


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short samples, and one thread: on a shared machine two that meet at a barrier wait for each other's turn."""
    monkeypatch.setattr("benchmarks.engine.measure.MIN_SAMPLE_MS", 0.2)
    monkeypatch.setattr("kernels.keep_freed_memory", lambda: False)  # it would last for all tests of this process
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
