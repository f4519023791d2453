"""Finds a build of the C++ CPU operators in the cache, or makes one; likewise of what launches the CUDA kernels.

The sources in csrc/cpu know no torch; one object per instruction set is compiled with that set's flags, and a small
binding links them to torch's thread pool. The cache is keyed by what must fit when the library is loaded: sources,
flags, torch, Python's binary interface. Neither paths nor the compiler are in the key: two checkouts share a build, and
one made where there was a compiler serves where there is none. So a new version of the compiler builds nothing anew by
itself; deleting the folder does, and CXX with another name or flags gets a build of its own.

A build that fails on the sources leaves its log in its folder and is not tried again until sources, flags, torch or
compiler change or the log is deleted. One that failed for want of something (disk, memory, a header) is not remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from kernels._cache import LIBRARY, Build, BuildError, cache_root, clear, keep, locked, say, whole_build

ROOMS = ("norm", "nce", "patches", "resample", "sinkhorn")  # each has ROOM/ROOM.cpp, without torch, and ROOM/bind.cpp

# ffp-contract lets a * b + c become one fused multiply-add; NaN and infinity keep their meaning (no -ffast-math).
_COMMON = "-O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -w".split()
_AVX2 = "-mavx2 -mfma -mf16c".split()
_AVX512 = [*_AVX2, *"-mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512".split()]
LEVELS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS |= {"avx2": _AVX2, "avx512": _AVX512, "avx512_bf16": [*_AVX512, "-mavx512bf16"]}

# Of the room that gains alone; the others' code would be the same again. amx_emulated has C++ in place of the matrix
# unit's instructions: what is around them is tested where there is none.
NCE_LEVELS = {}
if len(LEVELS) > 1:
    NCE_LEVELS = {
        "avx512_amx": [*LEVELS["avx512_bf16"], "-DKERNELS_AMX"],
        "amx_emulated": [*_AVX2, "-DKERNELS_AMX", "-DKERNELS_AMX_PLAIN"],
    }

# What a compiler or linker says when the machine, not the source, is in the way.
_PASSING = re.compile(
    "no space left|quota exceeded|killed|terminated|signal [0-9]|out of memory|cannot allocate|memory exhausted|"
    "interrupted|read-only file system|input/output error|permission denied|too many open files|"
    "resource temporarily unavailable|no such file or directory|file not found",
    re.IGNORECASE,
)


def _find_sources() -> Path:
    here = Path(__file__).resolve().parent
    installed = here / "_csrc" / "cpu"  # of a wheel: setup.py maps csrc there
    return installed if installed.is_dir() else here.parent / "csrc" / "cpu"


SOURCES = _find_sources()


# ---- what is compiled ------------------------------------------------------------------------------------------------


def _words(words: list[str]) -> str:
    return " ".join(shlex.quote(w) for w in words).replace("$", "$$")


def _paths(compiler: list[str]) -> str:
    """The part of the ninja file that names what lies where on this machine; not in the key."""
    torch_dir = Path(torch.__file__).parent
    include = [f"-I{torch_dir / 'include'}", f"-I{sysconfig.get_paths()['include']}"]
    library = [f"-L{torch_dir / 'lib'}", f"-Wl,-rpath,{torch_dir / 'lib'}"]
    sources = str(SOURCES).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
    own = _words([f"-I{SOURCES}"])
    named = {
        "own": own,
        "cxx": _words(compiler),
        "headers": _words(include),
        "torch": _words(library),
        "sources": sources,
    }
    return "".join(f"{name} = {value}\n" for name, value in named.items())


def _rules() -> str:
    """The rest of it: one object per room and instruction set, the bindings, one shared object."""
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]  # as torch itself was built
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    binding = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-w", abi, *openmp]
    libraries = ["-ltorch_cpu", "-lc10", *openmp]
    if sys.platform == "darwin":
        libraries += ["-undefined", "dynamic_lookup"]
    out = [
        "rule bind\n  command = $cxx $flags $own $headers -c $in -o $out",
        "rule compile\n  command = $cxx $flags $own -c $in -o $out",
        f"rule link\n  command = $cxx -shared $in -o $out $torch {_words(libraries)}",
    ]
    objects = []

    def compile(rule: str, source: str, name: str, flags: list[str]) -> None:
        out.append(f"build {name}.o: {rule} $sources/{source}.cpp\n  flags = {_words(flags)}")
        objects.append(f"{name}.o")

    compile("bind", "common/binding", "binding", binding)
    for room in ROOMS:
        compile("bind", f"{room}/bind", f"{room}_bind", binding)
    for room in ROOMS:
        for name, flags in (LEVELS | (NCE_LEVELS if room == "nce" else {})).items():
            isa = f"-DKERNELS_ISA=isa_{name}"
            compile("compile", f"{room}/{room}", f"{room}_{name}", ["-std=c++17", *_COMMON, isa, *flags])
    out.append(f"build {LIBRARY}: link {' '.join(objects)}")
    return "\n".join(out) + "\n"


def _operator_sources() -> list[Path]:
    needed = [SOURCES / room / f"{room}.cpp" for room in ROOMS]
    return sorted({*needed, *(p for p in SOURCES.rglob("*") if p.suffix in (".cpp", ".h"))})


def _launcher_rules() -> str:
    """csrc/cuda/launch.cpp, which knows neither torch nor a CUDA library."""
    library = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-ldl"]
    flags = _words(["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-w"])
    rule = f"rule make\n  command = $cxx {flags} $headers -shared $in -o $out {_words(library)}"
    return f"{rule}\nbuild {LAUNCHER_LIBRARY}: make $sources/../cuda/launch.cpp\n"


class Target(NamedTuple):
    """What is built into one library, in folders of its own."""

    library: str
    what: str
    prefix: str  # of its folders' names
    rules: Callable[[], str]
    sources: Callable[[], list[Path]]
    depends: tuple[object, ...]  # versions that must fit when it is loaded


_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")  # Python's version, its binary interface, the machine
LAUNCHER_LIBRARY = "_kernels_cuda.so"
OPERATORS = Target(
    LIBRARY,
    "the C++ CPU operators",
    "",
    _rules,
    _operator_sources,
    (_SUFFIX, torch.__version__, torch.version.git_version),
)
LAUNCHER = Target(
    LAUNCHER_LIBRARY,
    "the launcher of the CUDA kernels",
    "launcher-",
    _launcher_rules,
    lambda: [SOURCES.parent / "cuda" / "launch.cpp"],
    (_SUFFIX,),
)


def _key(target: Target = OPERATORS) -> str:
    sources = target.sources()
    if not all(source.exists() for source in sources):
        raise BuildError(f"the C++ sources are not at {SOURCES}: this installation is incomplete")
    digest = hashlib.sha256()
    for text in (target.rules(), sys.platform, platform.machine(), *target.depends):
        digest.update(str(text).encode() + b"\0")
    for source in sources:
        digest.update(os.path.relpath(source, SOURCES).encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


# ---- with what -------------------------------------------------------------------------------------------------------


def _asked() -> str:
    """The compiler command in CXX; empty for the system's."""
    return os.environ.get("CXX", "").strip()


def _compiler() -> list[str]:
    asked = _asked()
    if not asked:
        for name in ("c++", "g++", "clang++"):
            if found := shutil.which(name):
                return [os.path.abspath(found)]
        raise BuildError("no C++ compiler on the PATH (looked for c++, g++, clang++; CXX names another)")
    try:
        program, *flags = shlex.split(asked)
    except ValueError as error:
        raise BuildError(f"CXX={asked!r} is not a command: {error}") from None
    found = shutil.which(program)
    if not found:
        raise BuildError(f"CXX={asked!r} names no program on the PATH")
    return [os.path.abspath(found), *flags]  # ninja runs it from another folder


def _run(command: list[str], timeout: float | None = None, **environment: str) -> tuple[int, str]:
    """Exit status and all that was said. In English: _PASSING is."""
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C", **environment},
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from None
    with child:
        try:
            said, _ = child.communicate(timeout=timeout)
        except BaseException as error:  # Ctrl-C above all
            child.terminate()  # upon which ninja ends its compilers, as it could not if it were killed
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            child.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildError(f"{command[0]} does not end: {error}") from None
            raise
    return child.returncode, said.decode(errors="replace")


def _version(compiler: list[str]) -> str:
    status, text = _run([*compiler, "--version"], timeout=60)
    if status:
        raise BuildError(f"{shlex.join(compiler)} --version ends with status {status}")
    return text.partition("\n")[0].strip()


def _ninja() -> str:
    beside = os.path.dirname(sys.executable or "")  # the pip package, also when its environment is not activated
    found = shutil.which("ninja", path=beside) or shutil.which("ninja")
    if not found:
        raise BuildError("ninja is not installed (pip install ninja)")
    return os.path.abspath(found)


def _check_headers() -> None:
    include = sysconfig.get_paths()["include"]
    if not os.path.exists(os.path.join(include, "Python.h")):
        raise BuildError(f"Python's headers are not at {include} (they are in python3-dev, python3-devel or the like)")


# ---- builds ----------------------------------------------------------------------------------------------------------


def find_or_build(target: Target = OPERATORS) -> Build:
    """A whole build for this process. Raises BuildError with the reason that there is none."""
    key, root, asked = target.prefix + _key(target), cache_root(), _asked()
    folder = root / f"{key}-{hashlib.sha256(os.fsencode(asked)).hexdigest()[:8] if asked else 'default'}"
    found = whole_build(folder, target.library)
    if found:
        return found
    try:
        return _make(folder, target)
    except BuildError as error:
        other = _other(root, key, target.library)
        if other:
            return other
        if os.path.exists(folder / target.library):
            raise BuildError(f"the build in {folder} is damaged or not for this system, and {error}") from None
        raise


def load_library(target: Target = OPERATORS) -> tuple[ModuleType, Build]:
    """The library, built if need be, and loaded as a module. Raises BuildError with the reason that there is none."""
    build = find_or_build(target)
    try:
        return _import(target.library.removesuffix(".so"), build.library), build
    except (OSError, ImportError) as error:
        mapped = "failed to map segment" in str(error)
        way_out = (
            "is it on a file system mounted noexec? KERNELS_CACHE names another folder"
            if mapped
            else "deleting its folder builds it anew"
        )
        raise BuildError(f"the built library does not load: {error} ({way_out})") from None


def _import(name: str, path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # as it is where a loader is given
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _other(root: Path, key: str, library: str) -> Build | None:
    """A build by another compiler than CXX asks for; without flags of its own: -march=native may not run here."""
    found = (whole_build(folder, library) for folder in sorted(root.glob(f"{key}-*")))
    return next((b for b in found if b and not any(word.startswith("-") for word in b.command)), None)


def _make(folder: Path, target: Target) -> Build:
    compiler, ninja = _compiler(), _ninja()
    version = _version(compiler)
    _check_headers()
    log = folder / "failed.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", target.what) as alone:
            found = whole_build(folder, target.library)
            if found:  # another process was quicker
                return found
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            if text and text.partition("\n")[0] == version:
                raise BuildError(_remembered(text, log))
            if alone:
                clear(folder)
            return _compile(folder, target, log, compiler, version, ninja)
    except OSError as error:
        why = error.strerror or error
        raise BuildError(f"the cache folder {folder} cannot be used: {why} (KERNELS_CACHE names another)") from None


def _compile(folder: Path, target: Target, log: Path, compiler: list[str], version: str, ninja: str) -> Build:
    say(f"kernels: compiling {target.what} (once; cache {folder}) ...", end=" ")
    start, outcome = time.perf_counter(), "failed"
    try:
        with tempfile.TemporaryDirectory(prefix="work-", dir=folder, ignore_cleanup_errors=True) as work:
            Path(work, "build.ninja").write_bytes(os.fsencode(_paths(compiler) + target.rules()))
            # the compiler's own temporary files too: they need room in one place only, and go with the folder
            status, text = _run([ninja, "-C", work], TMPDIR=work)
            if status or not Path(work, target.library).exists():
                _fail(status, text, Path(work, "log"), log, version)
            found = keep(Path(work, target.library), compiler, version, folder)
            log.unlink(missing_ok=True)
        outcome = f"{time.perf_counter() - start:.1f} s"
        return found
    finally:
        say(outcome)


def _fail(status: int, text: str, partial: Path, log: Path, version: str) -> None:
    """Raises; remembers the failure where the sources or flags are to blame."""
    if status < 0 or not blames_sources(text):
        raise BuildError(f"{_failure(text)} (ninja ended with status {status}; the next process tries again)")
    with contextlib.suppress(OSError):
        partial.write_text(f"{version}\n{text}", encoding="utf-8")
        os.replace(partial, log)
    raise BuildError(_remembered(text, log))


def blames_sources(text: str) -> bool:
    """Whether a compiler that said this would say it again: else the machine was in the way."""
    return "error:" in text and not _PASSING.search(text)


def _remembered(text: str, log: Path) -> str:
    return f"{_failure(text)} (whole log: {log}; delete it to try again)"


def _failure(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [
        *(line for line in lines if _PASSING.search(line)),
        *(line for line in lines if "error" in line.lower()),
        *lines[-1:],
        "the compiler gave no message",
    ]
    return f"the C++ build failed: {telling[0][:500]}"
