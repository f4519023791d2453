"""Which implementation runs, and what is said when one cannot: no compiler, a failing one, forced choices."""

import os
import textwrap
from pathlib import Path

import pytest
import torch

import kernels
from kernels import _native

ROOT = Path(__file__).parents[2]


@pytest.fixture
def python(forked):
    return lambda code, **environment: forked(textwrap.dedent(code), **environment)


USE = """
    import warnings, torch, kernels
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            y = kernels.instance_norm(torch.randn(2, 3, 8, 8), activation="relu", padding=1)
    print(tuple(y.shape), len([w for w in caught if w.category is RuntimeWarning]))
    print(*[w.message for w in caught])
    print(kernels.backend_report())
    try:
        kernels.instance_norm(torch.randn(2, 3, 8, 8), impl="cpu")
    except kernels.BackendUnavailable as error:
        print("raised:", error)
"""


def test_without_a_compiler_the_reference_runs_and_says_so_once(tmp_path, python):
    done = python(USE, KERNELS_CACHE=str(tmp_path), CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "(2, 3, 10, 10) 1" in done.stdout
    assert "cpu        unavailable: CXX='no-such-compiler' names no program on the PATH" in done.stdout
    assert "raised: impl='cpu' cannot run: CXX='no-such-compiler'" in done.stdout


def test_a_failed_build_is_remembered(tmp_path, python):
    compiler = tmp_path / "broken-c++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo broken 1.0; exit 0; }\n'
        f'echo called >> {tmp_path}/calls\necho "fatal error: no such header"\nexit 1\n'
    )
    compiler.chmod(0o755)
    for attempt in range(2):
        done = python(USE, KERNELS_CACHE=str(tmp_path / "cache"), CXX=str(compiler))
        assert done.returncode == 0, done.stderr
        assert "(2, 3, 10, 10) 1" in done.stdout
        assert "the C++ build failed" in done.stdout and "no such header" in done.stdout and "delete it" in done.stdout
        assert ("compiling the C++" in done.stderr) == (attempt == 0)
        calls = (tmp_path / "calls").read_text().count("called")
    first = calls
    assert 1 <= first <= 5  # one run of ninja, not one a call or a process
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_an_unwritable_cache_is_a_reason_and_not_a_crash(tmp_path, python):
    (tmp_path / "file").write_text("")
    done = python(USE, KERNELS_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert f"cpu        unavailable: the cache folder {tmp_path / 'file'}" in done.stdout
    assert "Not a directory" in done.stdout and "KERNELS_CACHE names another" in done.stdout


@pytest.mark.slow
def test_a_build_from_nothing_works_and_takes_under_a_minute(tmp_path, python):
    done = python(USE, KERNELS_CACHE=str(tmp_path))
    assert "cpu        active" in done.stdout, done.stdout + done.stderr
    seconds = float(done.stderr.split("...")[1].split(" s")[0])
    assert seconds < 60
    again = python(USE, KERNELS_CACHE=str(tmp_path))
    assert "compiling" not in again.stderr


def test_forced_implementation(python):
    code = """
        import torch, kernels
        x = torch.randn(2, 3, 9, 9)
        print(torch.equal(kernels.instance_norm(x), kernels.instance_norm(x, impl="reference")))
        print(kernels.backend_report())
    """
    done = python(code, KERNELS_IMPL="reference")
    assert "True" in done.stdout and "KERNELS_IMPL=reference overrides" in done.stdout, done.stderr
    done = python("import torch, kernels; kernels.instance_norm(torch.randn(1, 1, 4, 4))", KERNELS_IMPL="cuda")
    assert "KERNELS_IMPL=cuda cannot run: the tensors are on cpu" in done.stderr
    done = python("import torch, kernels; kernels.instance_norm(torch.randn(1, 1, 4, 4))", KERNELS_IMPL="quick")
    assert "KERNELS_IMPL: got 'quick'" in done.stderr


def test_forced_instruction_set(tmp_path, python):
    code = "import kernels; print(kernels.backend_report())"
    said = python(code, KERNELS_CPU_ISA="baseline").stdout
    assert "active, baseline" in said and "bfloat16 losses multiply in float32" in said
    for name in _native.load().emulated():  # never chosen, but had by name
        said = python(code, KERNELS_CPU_ISA=name).stdout
        assert f"active, {name} (this machine: baseline, " in said and said.count(name) == 1
        assert "bfloat16 losses multiply in emulated matrix units" in said
    # an operator refuses before a build, the report says why and ends well
    use = f"{code}; import torch; kernels.blur_upsample(torch.ones(1, 1, 4, 4))"
    done = python(use, KERNELS_CPU_ISA="avx9", KERNELS_CACHE=str(tmp_path))
    want = "KERNELS_CPU_ISA: got 'avx9', want one of baseline"
    assert f"cpu        unavailable: {want}" in done.stdout
    assert f"ValueError: {want}" in done.stderr and done.returncode == 1
    assert not list(tmp_path.iterdir())


def test_import_needs_neither_triton_nor_a_build(tmp_path, python):
    code = """
        import sys
        sys.modules["triton"] = None
        import kernels, torch
        try:
            kernels.instance_norm(torch.randn(1, 2, 4, 4), impl="triton")
        except kernels.BackendUnavailable as error:
            print(error)
    """
    done = python(code, KERNELS_CACHE=str(tmp_path))
    assert "triton is not installed" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir()), "importing built something"


def test_the_namesake_on_pypi_is_named(tmp_path, python):
    info = tmp_path / "kernels-0.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9\n")
    done = python("import kernels", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 0
    assert "the distribution `kernels` 0.9 from PyPI is installed as well" in done.stderr
    assert "pip uninstall kernels" in done.stderr


def test_report_on_this_machine():
    report = kernels.backend_report()
    assert f"{torch.get_num_threads()} threads" in report
    assert f"cpu        active, {_native.selected_isa()}" in report


def test_torchs_thread_count_is_respected(python):
    """The kernels run on torch's pool: with one thread, the time of this thread is all there is."""
    code = """
        import time, torch, kernels
        torch.set_num_threads(1)
        x = torch.randn(8, 64, 128, 128)
        kernels.instance_norm(x)
        wall, own, all_ = time.perf_counter(), time.thread_time(), time.process_time()
        for _ in range(20):
            kernels.instance_norm(x)
        own, all_ = time.thread_time() - own, time.process_time() - all_
        print(all_ - own < 0.2 * all_)
    """
    assert "True" in python(code).stdout
