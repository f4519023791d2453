"""Odd environments, each in a process of its own: one reason, the reference, no traceback and no death by a signal."""

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import kernels
from kernels import _native, backends
from kernels._cache import LIBRARY, RECORD

ROOT = Path(__file__).parents[2]

# Importing torch and this library takes seconds: one process does it, and each case is a fork of it that changes its
# environment first.
FORKS = """
    import json, os, sys, warnings
    import torch, kernels
    from kernels import backends

    def use():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                y = kernels.instance_norm(torch.arange(32.0).view(1, 2, 4, 4), activation="relu")
        print("\\nsum", y.sum().item())
        for warning in caught:
            print("warned", warning.message)
        try:
            kernels.instance_norm(torch.ones(1, 2, 4, 4), impl="cpu")
            print("ran on cpu")
        except kernels.BackendUnavailable as error:
            print("raised", error)
        backends.main()

    for number, case in enumerate(CASES):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            code = 1
            try:
                out = os.open(f"{FOLDER}/{number}", os.O_WRONLY | os.O_CREAT)
                os.dup2(out, 1), os.dup2(out, 2)
                exec(case.pop("first", ""))
                for name, value in case.items():
                    os.environ.pop(name, None)
                    if value is not None:
                        os.environ[name] = value
                use()
                sys.stdout.flush()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def in_forks(forked, folder, cases):
    """What each case printed. A case: environment variables (None takes one away), and `first`, code to run before."""
    folder.mkdir()
    done = forked(f"CASES, FOLDER = {cases!r}, {str(folder)!r}\n{textwrap.dedent(FORKS)}")
    assert done.returncode == 0, done.stderr
    said = [(folder / str(number)).read_text() for number in range(len(cases))]
    assert done.stdout.split() == ["0"] * len(cases), "\n".join(said)
    return said


def total(said):
    return float(said.split("sum ")[1].split()[0])


@pytest.fixture
def cache(tmp_path):
    """A cache with a copy of this process' build."""
    here = Path(_native.load().__file__).parent
    folder = tmp_path / "cache" / here.name
    folder.mkdir(parents=True)
    for name in (LIBRARY, RECORD):
        shutil.copy(here / name, folder / name)
    return folder


def test_every_odd_environment_is_one_reason_and_the_reference(tmp_path, cache, forked):
    full = 'import tempfile, errno; tempfile.mkdtemp = lambda *a: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))'
    nobody = 'import pwd; pwd.getpwuid = lambda uid: {}["no entry"]'
    (tmp_path / "file").write_text("")
    empty = str(tmp_path / "empty")
    whole = str(cache.parent)
    broken = tmp_path / "broken"
    shutil.copytree(cache.parent, broken)
    os.truncate(broken / cache.name / LIBRARY, 20000)
    cases = {
        "no home directory": {"first": nobody, "HOME": None, "KERNELS_CACHE": None, "XDG_CACHE_HOME": None},
        "KERNELS_CACHE='~nosuchuser/x'": {"KERNELS_CACHE": "~nosuchuser/x"},
        "Not a directory": {"KERNELS_CACHE": str(tmp_path / "file")},
        f"the cache folder {empty}": {"first": full, "KERNELS_CACHE": empty, "CXX": None},
        "is not a command: No closing quotation": {"KERNELS_CACHE": empty, "CXX": 'g++ "'},
        "names no program on the PATH": {"KERNELS_CACHE": empty, "CXX": "/"},
        "no C++ compiler on the PATH": {"KERNELS_CACHE": empty, "PATH": "/nowhere", "CXX": None},
        # of a library that was cut short, loading ends the process by a signal
        "is damaged or not for this system, and no C++ compiler": {
            "KERNELS_CACHE": str(broken),
            "PATH": "/nowhere",
            "CXX": None,
        },
        "the C++ sources are not at /gone": {
            "first": "from kernels import _build; from pathlib import Path; _build.SOURCES = Path('/gone/csrc')"
        },
        "failed to map segment from shared object (is it on a file system mounted noexec?": {
            "first": "from kernels import _build\n"
            "def noexec(name, path): raise ImportError(f'{path}: failed to map segment from shared object')\n"
            "_build._import = noexec",
            "KERNELS_CACHE": whole,
        },
    }
    served = {"KERNELS_CACHE": whole, "PATH": "/nowhere", "CXX": None, "XDG_CACHE_HOME": "", "HOME": None}
    lost = str(tmp_path / "lost")
    shutil.copytree(cache.parent, lost)
    removed = {  # while the process runs
        "first": f"import shutil; os.environ['KERNELS_CACHE'] = {lost!r}\n"
        f"kernels.instance_norm(torch.ones(1, 2, 4, 4)); shutil.rmtree({lost!r})"
    }
    reasons = list(cases)
    *odd, good, gone = in_forks(forked, tmp_path / "out", [*cases.values(), served, removed])
    for said in (good, gone):
        assert "active" in said and "ran on cpu" in said and "warned" not in said and total(said) == total(good)
    assert lost in gone
    for want, said in zip(reasons, odd):
        lines = said.splitlines()
        assert abs(total(said) - total(good)) < 1e-4, said
        kinds = [line.split()[0] for line in lines if want in line]
        assert kinds == ["warned", "raised", "cpu"], said  # one warning, one error, the report
        assert len([line for line in lines if line.startswith("warned")]) == 1
        assert "Traceback" not in said


def test_a_triton_that_does_not_import_is_a_reason(tmp_path, forked):
    forget = "[sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'triton']\n"

    def fake(name, *lines):
        (tmp_path / name / "triton").mkdir(parents=True)
        if lines:
            (tmp_path / name / "triton" / "__init__.py").write_text("\n".join(lines))
        return f"{forget}sys.path.insert(0, {str(tmp_path / name)!r})"

    gone = forget + "sys.path[:] = [p for p in sys.path if not os.path.isdir(p + '/triton')]\n"
    cuda = "def dead(): raise RuntimeError('driver is\\nin a bad state')\ntorch.cuda.is_available = dead"
    cases = {
        "triton does not import (RuntimeError: no driver)": fake("a", "raise RuntimeError('no driver')"),
        "triton does not import (OSError: libcuda.so.1)": fake("b", "raise OSError('libcuda.so.1')"),
        "triton does not import (AttributeError: ": fake("c", "import sys; sys.no_such_name"),
        "triton does not import (ImportError: DLL)": fake("d", "raise ImportError('DLL')"),
        # a folder of that name in the working directory
        "triton does not import (ModuleNotFoundError: No module named 'triton.language'": gone + fake("e"),
        "triton is not installed (": gone,
        "torch.cuda does not answer (RuntimeError: driver is in a bad state)": f"{fake('f', '')}\n{cuda}",
    }
    (tmp_path / "f" / "triton" / "language.py").write_text("")
    environment = {"TRITON_INTERPRET": None, "KERNELS_IMPL": "reference"}
    for want, said in zip(
        cases, in_forks(forked, tmp_path / "out", [{"first": c, **environment} for c in cases.values()])
    ):
        assert f"triton     unavailable: {want}" in said


@pytest.mark.parametrize(
    "forced, want", [(" ", None), ("quick", "is an error: want one of auto"), ("cpu", "overrides")]
)
def test_the_report_on_a_forced_implementation(monkeypatch, forced, want):
    monkeypatch.setenv("KERNELS_IMPL", forced)
    said = [line for line in backends.backend_report().splitlines() if "KERNELS_IMPL" in line]
    assert want in said[0] if want else not said


def test_a_report_shows_paths_that_the_terminal_cannot(tmp_path):
    env = {"KERNELS_CACHE": str(tmp_path / "caché"), "CXX": "nø-compiler", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", "from kernels import backends; backends.main()"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "n\\xf8-compiler" in done.stdout and "reference  active" in done.stdout


def test_ctrl_c_ends_a_build_and_leaves_nothing(tmp_path):
    slow, pids = tmp_path / "slow", tmp_path / "pids"
    slow.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && {{ echo slow 1; exit 0; }}\necho $$ >> {pids}\nexec sleep 60\n'
    )
    slow.chmod(0o755)
    code = "import torch, kernels; kernels.instance_norm(torch.ones(1, 1, 4, 4))"
    env = {"PYTHONPATH": str(ROOT), "KERNELS_CACHE": str(tmp_path / "cache"), "CXX": str(slow)}
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    try:
        deadline = time.monotonic() + 120
        while not pids.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)  # to it alone, as from a notebook
        _, said = child.communicate(timeout=30)
    finally:
        child.kill()
    assert "KeyboardInterrupt" in said and child.returncode == -signal.SIGINT
    assert [p.name for p in (tmp_path / "cache").glob("*/*")] == ["lock"]
    deadline = time.monotonic() + 10
    while any(map(runs, pids.read_text().split())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, pids.read_text().split()))


def runs(pid: str) -> bool:
    """Whether the process lives; one that ended and that nobody has asked about yet does not."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_threads_that_start_at_once_load_once(monkeypatch):
    module, found = _native.load(), []

    def find():
        found.append(threading.get_ident())
        time.sleep(0.2)
        return module

    monkeypatch.setattr(_native, "_find", find)
    monkeypatch.setattr(_native, "_module", None)
    monkeypatch.setattr(_native, "_found", None)
    threads = [threading.Thread(target=_native.load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1 and _native.load() is module


def test_odd_metadata_of_other_distributions_does_not_stop_the_import(monkeypatch, recwarn):
    def fails(error):
        raise error

    for error in (KeyError("Version"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, ""), OSError(13)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, error=error: fails(error))
        kernels._warn_of_namesake()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: None)  # of an empty dist-info
    kernels._warn_of_namesake()
    assert not recwarn.list
