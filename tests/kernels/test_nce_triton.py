"""The triton kernels of patch_nce_loss in triton's interpreter, in a process of their own: see test_norm_triton.py."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("nce_triton_cases.py")
AT_LEAST = 150  # cases; an empty or cut-off run is no pass


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_in_the_interpreter():
    root = CASES.parents[2]
    environment = dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1", PYTHONPATH=str(root))
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(CASES)]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=550)
    report = run.stdout[-20000:] + run.stderr[-2000:]
    if "only 0-dimensional arrays can be converted to Python scalars" in report:
        pytest.skip("this triton's interpreter cannot loop with this numpy (seen: triton 3.6 with numpy 2.4)")
    passed = re.search(r"^(\d+) passed(?:, \d+ skipped)?(?:, \d+ warnings?)? in ", run.stdout, re.MULTILINE)
    assert run.returncode == 0 and passed, report
    assert int(passed.group(1)) >= AT_LEAST, report
