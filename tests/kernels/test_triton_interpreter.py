"""The triton kernels of every room in triton's interpreter.

triton reads TRITON_INTERPRET when it is imported, and other tests of this process need it compiling: so the cases run
in a pytest of their own, and this test passes only if that one passed all of them, and as many as there should be.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
# cases by file; an empty or cut-off run is no pass
AT_LEAST = {
    "maps": 140,
    "norm": 160,
    "nce": 140,
    "nce_hard": 55,
    "nce_edges": 40,
    "patches": 28,
    "resample": 60,
    "sinkhorn": 45,
    "defaults": 17,
}


def run_cases(name: str) -> subprocess.CompletedProcess[str]:
    root = FOLDER.parents[1]
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1", PYTHONPATH=str(root))
    environment.pop("PYTEST_ADDOPTS", None)
    cases = str(FOLDER / f"{name}_triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", cases]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=550)


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Future]]:
    """All at once, two at a time: each keeps one core busy for about a minute."""
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(run_cases, name) for name in AT_LEAST}
    pool.shutdown(cancel_futures=True)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("name", AT_LEAST)
def test_in_the_interpreter(name, runs):
    run = runs[name].result()
    report = run.stdout[-20000:] + run.stderr[-2000:]
    if "only 0-dimensional arrays can be converted to Python scalars" in report:
        pytest.skip("this triton's interpreter cannot loop with this numpy (seen: triton 3.6 with numpy 2.4)")
    passed = re.search(r"^(\d+) passed(?:, \d+ (?:skipped|deselected|warnings?))* in ", run.stdout, re.MULTILINE)
    assert run.returncode == 0 and passed, report
    assert int(passed.group(1)) >= AT_LEAST[name], report
