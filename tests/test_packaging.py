"""What `pip install .` puts into an environment: built, installed into a folder of its own, used from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SOURCES = {p.relative_to(CSRC).as_posix() for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cuh")}

USE = """
import sys, torch, fused_i2i, kernels
from kernels import _native
assert fused_i2i is kernels
import fused_i2i.norm.op, kernels.norm.op
assert fused_i2i.norm.op is kernels.norm.op and kernels.norm.op.__spec__.name == "kernels.norm.op"
x = torch.randn(2, 3, 8, 8)
y = kernels.instance_norm(x, activation="relu", impl="cpu")
assert torch.allclose(y, kernels.instance_norm(x, activation="relu", impl="reference"), atol=1e-6)
assert "torch._dynamo" not in sys.modules  # torch's compiler, which takes longer to import than all else here
print(_native.SOURCES)
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The files a build reads, in a folder that it may fill."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("kernels", "i2i", "fused_i2i", "csrc", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_a_wheel_runs_the_cpp_operators_from_anywhere(source, tmp_path):
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheel", source, cwd=tmp_path)
    (wheel,) = (tmp_path / "wheel").iterdir()
    target = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", target, wheel, cwd=tmp_path)
    installed = target / "kernels" / "_csrc"
    assert {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()} == SOURCES
    assert not (target / "benchmarks").exists() and not (target / "examples").exists()
    assert all((target / name / "py.typed").exists() for name in ("kernels", "i2i", "fused_i2i"))
    used = run("-c", USE, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()[-1]
    assert Path(used) == target / "kernels" / "_csrc" / "cpu"
    assert (
        "checkout"
        in subprocess.run(
            [sys.executable, "-c", "import kernels._bench, sys; sys.exit(kernels._bench.main())"],
            cwd=tmp_path,
            env=dict(os.environ, PYTHONPATH=str(target)),
            capture_output=True,
            text=True,
        ).stderr
    )


def test_an_sdist_holds_the_sources(source, tmp_path):
    run("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})", cwd=source)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as held:
        held_names = held.getnames()
    names = {n.partition("/csrc/")[2] for n in held_names if "/csrc/" in n}
    assert SOURCES <= names and not any("/examples/" in n for n in held_names)
