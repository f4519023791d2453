import numpy as np
import pytest
import torch
from numerics import LEVELS
from torch.utils._device import _device_constructors

from kernels import _native, backends

# torch collects its constructors once, for default devices: before `poisoned` puts others in their place
_device_constructors()

if backends.interpreting():
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, *precision):
        """Exact, rounded once. numpy's float32 product rounds as the BLAS of the machine does: on one with AVX2 kernels
        six times as far from float64 as torch's. These cases are about the kernels around it."""
        exact = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + d.data
        return interpreter.TensorHandle(exact.astype(d.data.dtype), d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


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
