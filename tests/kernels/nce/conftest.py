import pytest
import torch
from support.numerics import EMULATED, LEVELS, instruction_set

from kernels import backends


@pytest.fixture(params=[*LEVELS, *EMULATED] or ["no native build"])
def isa(request):
    """Every instruction set this machine runs, in turn, and the emulated ones."""
    if not LEVELS:
        pytest.fail(f"the C++ operators did not build: {backends.why_no_cpu()}")
    with instruction_set(request.param):
        yield request.param


def pytest_collection_modifyitems(items):
    """An emulated level has code of its own for bfloat16 alone; tests without a dtype see that it leaves the others to
    another level."""

    def elsewhere(item):
        values = item.callspec.params if hasattr(item, "callspec") else {}
        return values.get("isa") in EMULATED and values.get("dtype", torch.bfloat16) != torch.bfloat16

    items[:] = [item for item in items if not elsewhere(item)]
