"""Compiles CUDA kernels at first use, one instantiation of a template at a time, and keeps them in the cache.

NVRTC does it, which torch's CUDA wheel brings, with its Python binding: nvcc is never needed, and the code is for the
very device that is there. The sources (csrc/cuda) include no header of CUDA's, so NVRTC gets them as strings. The cache
is keyed by what makes the code: the room's sources, the instantiation, options, compiler and architecture. A kernel
that does not compile leaves its log in its folder and is not tried again until one of these changes or the log is
deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

from kernels._build import SOURCES as CPU_SOURCES
from kernels._build import blames_sources
from kernels._cache import RECORD, BuildError, cache_root, clear, keep, locked, say, whole_build

SOURCES = CPU_SOURCES.parent / "cuda"
IMAGE = "kernel.cubin"
# Without the last, lambdas that take `auto` count as host functions. The one before it has the assembler say what a
# kernel takes.
OPTIONS = ("-std=c++17", "--fmad=true", "--ptxas-options=-v", "--device-as-default-execution-space")


def source(room: str, header: str, function: str, arguments: str, threads: int, size: int) -> str:
    """The kernel of one instantiation. `size`: bytes of its struct as Python packs it."""
    return (
        f'#include "{room}/{header}.cuh"\n'
        f'static_assert(sizeof({arguments}) == {size}, "Python packs another struct");\n'
        f"KERNEL({threads}, {arguments}, ({function}))\n"
    )


@functools.cache
def headers(room: str) -> dict[str, str]:
    """What a room's kernels may include, by the names they use."""
    found = [*SOURCES.glob("common/*.cuh"), *SOURCES.glob(f"{room}/*.h"), *SOURCES.glob(f"{room}/*.cuh")]
    if not found:
        raise BuildError(f"the CUDA sources are not at {SOURCES}: this installation is incomplete")
    return {path.relative_to(SOURCES).as_posix(): path.read_text(encoding="utf-8") for path in sorted(found)}


# ---- compilers -------------------------------------------------------------------------------------------------------


class Nvrtc:
    """NVIDIA's run-time compiler through cuda.bindings. Raises BuildError where it is not."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc  # pyright: ignore (torch's CUDA wheel brings it)

            self._nvrtc = nvrtc
            self.version = "nvrtc " + ".".join(str(part) for part in self._checked(nvrtc.nvrtcVersion()))
        except ImportError as error:
            raise BuildError(
                f"NVRTC's binding does not import ({error}); pip install cuda-bindings nvidia-cuda-nvrtc"
            ) from None
        except RuntimeError as error:  # the binding is there, the library is not
            raise BuildError(f"NVRTC does not load: {' '.join(str(error).split())}") from None

    def _checked(self, result: tuple) -> tuple:
        status, *values = result
        if status != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise BuildError(f"NVRTC: {status.name}")
        return tuple(values)

    def knows(self, arch: str) -> bool:
        """Whether it makes code for this architecture: one of CUDA 12.6 makes none for a GPU that came after it."""
        (known,) = self._checked(self._nvrtc.nvrtcGetSupportedArchs())
        return arch in {f"sm_{number}" for number in known}

    def compile(self, text: str, room: str, arch: str, out: Path) -> tuple[bool, str]:
        """(whether `out` was written, what the compiler said)."""
        nvrtc, given = self._nvrtc, headers(room)
        (program,) = self._checked(
            nvrtc.nvrtcCreateProgram(
                text.encode(),
                b"kernel.cu",
                len(given),
                [value.encode() for value in given.values()],
                [name.encode() for name in given],
            )
        )
        try:
            options = [f"--gpu-architecture={arch}".encode(), *(option.encode() for option in OPTIONS)]
            (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
            (size,) = self._checked(nvrtc.nvrtcGetProgramLogSize(program))
            log = b" " * size
            self._checked(nvrtc.nvrtcGetProgramLog(program, log))
            said = log.decode(errors="replace").rstrip("\0 \n")
            if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                return False, f"{status.name}\n{said}"
            (size,) = self._checked(nvrtc.nvrtcGetCUBINSize(program))
            image = b" " * size
            self._checked(nvrtc.nvrtcGetCUBIN(program, image))
            out.write_bytes(image)
            return True, said
        finally:
            nvrtc.nvrtcDestroyProgram(program)


class Emulated:
    """The compiler of a driver that brings its own (tests/support/emulation): its kernels run on the host."""

    def __init__(self, driver: str) -> None:
        self._compile = ctypes.CDLL(driver).emulated_compile
        digest = hashlib.sha256(Path(driver).read_bytes()).hexdigest()[:12]
        self.version = f"emulation {digest} {os.environ.get('KERNELS_EMULATION_FLAGS', '')}"

    def knows(self, arch: str) -> bool:
        return True

    def compile(self, text: str, room: str, arch: str, out: Path) -> tuple[bool, str]:
        given, log = out.with_name("kernel.cu"), out.with_name("log")
        given.write_text(text, encoding="utf-8")
        status = self._compile(*(os.fsencode(path) for path in (given, SOURCES, out, log)))
        return status == 0, log.read_text(encoding="utf-8", errors="replace")


# ---- the cache -------------------------------------------------------------------------------------------------------


def image(compiler: Nvrtc | Emulated, room: str, text: str, arch: str, name: str) -> Path:
    """The compiled kernel. `name`: what messages call it. Raises BuildError with the first error the compiler gave."""
    digest = hashlib.sha256()
    for part in (text, arch, compiler.version, *OPTIONS, *(f"{k}\0{v}" for k, v in headers(room).items())):
        digest.update(part.encode() + b"\0")
    folder = cache_root() / f"cuda-{digest.hexdigest()[:20]}"
    found = whole_build(folder, IMAGE)
    if found:
        return found.library
    log = folder / "failed.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", f"the CUDA kernel {name}") as alone:
            found = whole_build(folder, IMAGE)
            if found:  # another process was quicker
                return found.library
            if log.exists():
                raise BuildError(_failure(name, log.read_text(encoding="utf-8", errors="replace"), log))
            if alone:
                clear(folder)
            return _compile(compiler, room, text, arch, name, folder, log)
    except OSError as error:
        why = error.strerror or error
        raise BuildError(f"the cache folder {folder} cannot be used: {why} (KERNELS_CACHE names another)") from None


def _compile(compiler: Nvrtc | Emulated, room: str, text: str, arch: str, name: str, folder: Path, log: Path) -> Path:
    say(f"kernels: compiling the CUDA kernel {name} for {arch} (once) ...", end=" ")
    start, outcome = time.perf_counter(), "failed"
    try:
        with tempfile.TemporaryDirectory(prefix="work-", dir=folder, ignore_cleanup_errors=True) as work:
            built, said = compiler.compile(text, room, arch, Path(work, IMAGE))
            if not built:
                _fail(name, text, said, compiler.version, Path(work, "failed"), log)
            seconds = round(time.perf_counter() - start, 2)
            about = {"kernel": name, "arch": arch, "seconds": seconds, "takes": resources(said)._asdict()}
            found = keep(Path(work, IMAGE), ["nvrtc"], compiler.version, folder, **about)
        outcome = f"{seconds:.1f} s"
        return found.library
    finally:
        say(outcome)


class Resources(NamedTuple):
    """What a kernel takes, as the assembler says it; 0 where it says nothing (the emulation)."""

    registers: int  # of a thread
    spilled: int  # bytes of stores and loads
    shared: int  # bytes of static shared memory of a block


def resources(said: str) -> Resources:
    """Of what the compiler said."""

    def total(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, said))

    return Resources(total(r"Used (\d+) registers"), total(r"(\d+) bytes spill"), total(r"(\d+) bytes smem"))


def built() -> list[dict]:
    """The records of all kernels in the cache."""
    found = []
    for path in sorted(cache_root().glob(f"cuda-*/{RECORD}")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_bytes()))
    wanted = {"kernel", "arch", "compiler", "seconds", "takes"}
    return [record for record in found if isinstance(record, dict) and wanted <= record.keys()]


def _fail(name: str, text: str, said: str, version: str, partial: Path, log: Path) -> NoReturn:
    """Raises; remembers the failure where the sources are to blame."""
    if not blames_sources(said):
        raise BuildError(_failure(name, said, None))
    with contextlib.suppress(OSError):
        partial.write_text(f"{version}\n{text}\n{said}", encoding="utf-8")
        os.replace(partial, log)
    raise BuildError(_failure(name, said, log))


def _failure(name: str, said: str, log: Path | None) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [*(line for line in lines if "error" in line.lower()), *lines[-1:], "the compiler gave no message"]
    kept = f"whole log: {log}; delete it to try again" if log else "the next call tries again"
    return f"the CUDA kernel {name} does not compile: {telling[0][:500]} ({kept}; KERNELS_IMPL=triton goes round it)"
