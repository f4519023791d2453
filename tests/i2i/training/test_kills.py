"""A run that is killed at random moments, while it writes its files too, goes on to the bits of an unbroken one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHILD = ROOT / "tests/support/kill_child.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_killed_run_goes_on_to_the_bits_of_an_unbroken_one(tmp_path, kills):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CHILD), str(tmp_path), str(kills), "0"]
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["kills"] == kills and found["runs"] > 0
    assert sum(found["inside"].values()) > 0  # in the middle of a file
    if kills == 50:
        assert found["inside"]["checkpoint.pt.tmp"] > 5
