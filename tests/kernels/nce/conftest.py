import pytest
from support.numerics import EMULATED, LEVELS, instruction_set

from kernels import backends


@pytest.fixture(params=[*LEVELS, *EMULATED] or ["no native build"])
def isa(request):
    """Every instruction set this machine runs, in turn, and the emulated ones."""
    if not LEVELS:
        pytest.fail(f"the C++ operators did not build: {backends.why_no_cpu()}")
    with instruction_set(request.param):
        yield request.param
