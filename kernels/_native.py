"""Builds the C++ CPU operators at first use and loads them.

The sources in csrc/cpu know no torch; one object per instruction set is compiled with that set's flags, and a small
binding links them to torch's thread pool. The result goes into a cache directory keyed by sources, flags, compiler,
Python and torch, so a second process loads it in milliseconds and an upgrade of any of them builds anew. A build that
fails leaves its log under the same key and is not tried again until the key changes or the log is deleted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

MODULE = "_kernels_cpu"
SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cpu"
ROOMS = ("norm", "nce", "patches", "resample", "sinkhorn")  # each has ROOM.cpp, without torch, and bind_ROOM.cpp

# ffp-contract lets a * b + c become one fused multiply-add; NaN and infinity keep their meaning (no -ffast-math).
_COMMON = "-O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -w".split()
_AVX2 = "-mavx2 -mfma -mf16c".split()
_AVX512 = [*_AVX2, *"-mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512".split()]
_LEVELS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    _LEVELS |= {"avx2": _AVX2, "avx512": _AVX512, "avx512_bf16": [*_AVX512, "-mavx512bf16"]}


class BuildError(RuntimeError):
    """The C++ operators cannot be built or loaded here; the message says why."""


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        command = shlex.split(named)
        if not shutil.which(command[0]):
            raise BuildError(f"CXX={named!r} names no program on the PATH")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler on the PATH (looked for c++, g++, clang++; CXX names another)")


def _ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"  # the pip package, also when its environment is not activated
    found = str(beside) if beside.exists() else shutil.which("ninja")
    if not found:
        raise BuildError("ninja is not installed (pip install ninja)")
    return found


def _rules(compiler: list[str]) -> str:
    """The ninja file: one object per room and instruction set, the bindings, one shared object."""
    torch_dir = Path(torch.__file__).parent
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]  # as torch itself was built
    include = [f"-I{torch_dir / 'include'}", f"-I{sysconfig.get_paths()['include']}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    binding = ["-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-w", abi, *openmp, *include]
    libraries = [f"-L{torch_dir / 'lib'}", f"-Wl,-rpath,{torch_dir / 'lib'}", "-ltorch_cpu", "-lc10", *openmp]
    if sys.platform == "darwin":
        libraries += ["-undefined", "dynamic_lookup"]

    def line(words: list[str]) -> str:
        return " ".join(shlex.quote(w) for w in words).replace("$", "$$")

    def path(p: Path) -> str:
        return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    out = [
        f"cxx = {line(compiler)}",
        "rule compile\n  command = $cxx $flags -c $in -o $out",
        f"rule link\n  command = $cxx -shared $in -o $out {line(libraries)}",
    ]
    objects = []

    def compile(source: str, name: str, flags: list[str]) -> None:
        out.append(f"build {name}.o: compile {path(SOURCES / source)}\n  flags = {line(flags)}")
        objects.append(f"{name}.o")

    for source in ("binding", *(f"bind_{room}" for room in ROOMS)):
        compile(f"{source}.cpp", source, binding)
    for name, flags in _LEVELS.items():
        words = ["-std=c++17", *_COMMON, f"-DKERNELS_ISA=isa_{name}", *flags]
        for room in ROOMS:
            compile(f"{room}.cpp", f"{room}_{name}", words)
    out.append(f"build {MODULE}.so: link {' '.join(objects)}")
    return "\n".join(out) + "\n"


def cache_root() -> Path:
    """`KERNELS_CACHE`, else the user's cache directory."""
    if "KERNELS_CACHE" in os.environ:
        return Path(os.environ["KERNELS_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fused-i2i-kernels"


def _key(compiler: list[str], rules: str) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    digest = hashlib.sha256()
    for text in (rules, version, torch.__version__, sys.version):
        digest.update(text.encode() + b"\0")
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time; the operating system frees the lock of a process that dies."""
    with open(path, "w") as handle:
        try:
            import fcntl
        except ImportError:  # no such lock on this system: two builders race, and the atomic rename picks one
            yield
            return
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(target: Path, log: Path, compiler: list[str], rules: str) -> None:
    ninja = _ninja()
    print(
        f"kernels: compiling the C++ CPU operators (once; cache {target.parent}) ...",
        file=sys.stderr,
        end=" ",
        flush=True,
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        (Path(work) / "build.ninja").write_text(rules)
        done = subprocess.run([ninja, "-C", work], capture_output=True, text=True)
        built = Path(work) / f"{MODULE}.so"
        if done.returncode or not built.exists():
            partial = Path(work) / "log"
            partial.write_text(done.stdout + done.stderr)
            os.replace(partial, log)
            print("failed", file=sys.stderr, flush=True)
            raise BuildError(_failure(log))
        os.replace(built, target)
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _failure(log: Path) -> str:
    errors = [line for line in log.read_text().splitlines() if "error" in line.lower()]
    first = errors[0].strip() if errors else "the compiler gave no message"
    return f"the C++ build failed: {first} (whole log: {log}; delete it to try again)"


def _import(path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_file_location(MODULE, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def _load() -> ModuleType | BuildError:
    """Decided once per process: the module, or why there is none."""
    try:
        if not (SOURCES / "norm.cpp").exists():
            raise BuildError(f"the C++ sources are not at {SOURCES} (install with `pip install -e .`)")
        compiler = _compiler()
        rules = _rules(compiler)
        folder = cache_root() / _key(compiler, rules)
        folder.mkdir(parents=True, exist_ok=True)
        target, log = folder / f"{MODULE}.so", folder / "failed.log"
        if not target.exists():
            with _locked(folder / "lock"):
                if log.exists():
                    raise BuildError(_failure(log))
                if not target.exists():
                    _build(target, log, compiler, rules)
        module = _import(target)
    except BuildError as error:
        return error
    except (OSError, ImportError) as error:  # an unwritable cache, a library that does not load
        return BuildError(f"{type(error).__name__}: {error}")
    return module


def load() -> ModuleType:
    """The native module, built if need be. Raises BuildError with the reason."""
    module = _load()
    if isinstance(module, BuildError):
        raise module
    _select_from_environment(module)
    return module


_selected: str | None = None


def _select_from_environment(module: ModuleType) -> None:
    if _selected is None:
        select_isa(os.environ.get("KERNELS_CPU_ISA", "").strip() or module.supported()[-1], module)


def select_isa(name: str, module: ModuleType | None = None) -> None:
    """Uses the instruction set `name` from now on (`KERNELS_CPU_ISA` sets the first choice)."""
    global _selected
    module = module or load()
    if name not in module.supported():
        raise ValueError(
            f"KERNELS_CPU_ISA: {name!r} does not run here; this machine has {', '.join(module.supported())}"
        )
    module.select(name)
    _selected = name


def selected_isa() -> str:
    """The instruction set in use."""
    load()
    return str(_selected)


DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DType of csrc/cpu/parallel.h


def pointer(t: torch.Tensor | None) -> int:
    """The address of t's first element for C++, null for None."""
    return 0 if t is None else t.data_ptr()
