import pytest
import torch
from numerics import LEVELS

from kernels import _native, backends


@pytest.fixture(params=LEVELS or ["no native build"])
def isa(request):
    """Every instruction set this machine runs, in turn."""
    if not LEVELS:
        pytest.fail(f"the C++ operators did not build: {backends.cpu_reason()}")
    before = _native.selected_isa()
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


@pytest.fixture
def poisoned(monkeypatch):
    """New memory comes filled with NaN, so that an element nobody writes shows."""

    def poison(make):
        def new(*args, **kwargs):
            t = make(*args, **kwargs)
            return t.fill_(float("nan")) if t.is_floating_point() else t

        return new

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
