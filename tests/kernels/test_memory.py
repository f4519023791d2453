import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, torch, kernels
def step():
    return [torch.ones(3_000_000) for _ in range(4)]
def faults():
    for _ in range(6):
        step()  # the heap takes a few rounds to find room for everything at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), kernels.keep_freed_memory(), faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_not_faulted_in_again():
    # glibc moves its threshold while it runs, and may keep memory by itself: fixed, every large block is mapped anew
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    many, kept, few = done.stdout.split()
    assert kept == "True"
    assert int(few) * 10 < int(many), (few, many)  # measured: 0 against 58,000
