"""Emulated kernels under AddressSanitizer, in a process of their own: an access beyond a tensor or beyond a block's
shared memory ends it. torch's CPU tensors are pieces of malloc's memory, each with the sanitizer's fences around it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from kernels import _cuda_build

TESTS = Path(__file__).parents[1]
CHILD = """
    import sys
    from pathlib import Path
    from kernels import _cuda_build
    _cuda_build.SOURCES = Path(sys.argv[1])
    from support import emulated
    from support.{module} import everything
    with emulated.emulation("-fsanitize=address"):
        print(len(everything()), "results")
"""


def run(module: str, sources: Path = _cuda_build.SOURCES) -> subprocess.CompletedProcess:
    """everything() of tests/support/MODULE.py, on these sources."""
    library = subprocess.run(
        ["c++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = dict(
        os.environ,
        LD_PRELOAD=library,
        ASAN_OPTIONS="detect_leaks=0:detect_stack_use_after_return=0",
        KERNELS_EMULATION_FLAGS="-fsanitize=address -g1",
        PYTHONPATH=os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    )
    code = textwrap.dedent(CHILD.format(module=module))
    return subprocess.run(
        [sys.executable, "-c", code, str(sources)], capture_output=True, text=True, env=environment, timeout=900
    )
