import importlib.util

import pytest
import torch
from support.numerics import LEVELS, instruction_set
from support.turns import covering
from torch.utils._device import _device_constructors

from kernels import backends

# torch collects its constructors once, for default devices: before `poisoned` puts others in their place
_device_constructors()


def is_triton(path):
    """A file of cases of Triton's kernels alone, in the interpreter or on a GPU."""
    return path.name.startswith("test_triton") and not path.name.endswith("_offline.py")


def pytest_ignore_collect(collection_path):
    return True if is_triton(collection_path) and importlib.util.find_spec("triton") is None else None


@pytest.fixture(params=[pytest.param("triton", marks=pytest.mark.triton), "cuda"])
def impl(request):
    """The implementations for GPUs, in turn (test_device*.py): Triton's in its interpreter, which takes a process of
    its own, CUDA's in the emulation; on a GPU both."""
    if request.param == "triton" or torch.cuda.is_available():
        yield request.param
        return
    from support.emulated import emulation

    with emulation():
        yield "cuda"


@pytest.fixture
def launcher(impl, request):
    """The launcher of `impl` and of the test's room."""
    return backends.launcher(request.path.parent.name, impl)


def why_not_triton():
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if backends.interpreting():
        from support import interpreter

        return interpreter.why_not()
    return "" if torch.cuda.is_available() else "wants TRITON_INTERPRET=1 or a CUDA device"


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items):
    for item in items:
        if is_triton(item.path):
            item.add_marker("triton")
    cases = [item for item in items if item.get_closest_marker("triton")]
    why = why_not_triton() if cases else ""
    for item in cases:
        if why:
            item.add_marker(pytest.mark.skip(reason=why))
        elif not backends.interpreting():
            item.add_marker("gpu")
    for item in items:
        on_gpu = hasattr(item, "callspec") and item.callspec.params.get("impl") == "cuda" and torch.cuda.is_available()
        if on_gpu:
            item.add_marker("gpu")
    if backends.interpreting():
        leave_to_slow(cases)


MOST = 4  # of a test's cases in the interpreter


def leave_to_slow(cases):
    """In the interpreter a case takes a second, and CUDA's kernels meet the same ones: the default run takes so many of
    each test that every value of every parameter is met, but at most MOST, and -m slow the others."""
    tests = {}
    for item in cases:
        if not item.get_closest_marker("slow"):
            tests.setdefault((item.path, item.originalname), {})[item] = values_of(item)
    for of_one_test in tests.values():
        for item in of_one_test.keys() - set(covering(of_one_test)[:MOST]):
            item.add_marker("slow")


def values_of(item):
    """The values of a case's parameters; of a tuple of words and dtypes each, of one of numbers (a shape) the whole."""
    found = {()}  # of a test without parameters
    for name, value in (item.callspec.params if hasattr(item, "callspec") else {}).items():
        several = isinstance(value, tuple) and not all(isinstance(part, int) for part in value)
        found |= {(name, at, repr(part)) for at, part in enumerate(value if several else [value])}
    return found


@pytest.fixture(params=LEVELS or ["no native build"])
def isa(request):
    """Every instruction set this machine runs, in turn."""
    if not LEVELS:
        pytest.fail(f"the C++ operators did not build: {backends.why_no_cpu()}")
    with instruction_set(request.param):
        yield request.param


@pytest.fixture
def launched(impl):
    """The launches of `impl` so far, each with its `name`: a `Launch` of support/launches.py or of support/emulated.py.
    All of them are run."""
    if impl == "cuda":
        from support.emulated import recorded
    else:
        from support.launches import recorded  # needs triton, which other tests do without

    with recorded(run=True) as found:
        yield found


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
