"""Console script `kernels-bench`: `python -m benchmarks` of the checkout that this package is installed from."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int | str | None:
    # benchmarks is no package of the wheel: so common a name has no place in everybody's site-packages
    if not (ROOT / "benchmarks" / "test_ops.py").is_file():
        return "kernels-bench: benchmarks are not installed with the library; run `python -m benchmarks` in a checkout"
    sys.path.insert(0, str(ROOT))
    from benchmarks.__main__ import main as run

    return run()
