"""The CUDA kernels in the emulation (tests/support/emulation): its driver built, and named for a while.

Between these, impl="cuda" runs on CPU tensors, through the real launchers. Seeds order the threads: 0 in one fixed
order, others at random.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kernels import _cuda, backends
from kernels._cache import cache_root, locked

FOLDER = Path(__file__).parent / "emulation"
SOURCES = ("machine.cpp", "driver.cpp")
FLAGS = "-std=c++17 -O2 -fPIC -shared -w".split()
ROOMS = ("norm", "nce", "patches", "resample", "sinkhorn")


def _fused_multiply_add() -> list[str]:
    """Hardware for fmaf and half precision where the machine has it: the library's functions take 50 times as long."""
    try:
        known = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return ["-mfma", "-mf16c"] if " fma " in known and " f16c " in known else []


def driver(*flags: str) -> Path:
    """The driver library, built where the cache has none. flags: more of them, such as a sanitizer's."""
    command = ["c++", *FLAGS, *_fused_multiply_add(), *flags, f'-DEMULATION="{FOLDER}"']
    digest = hashlib.sha256("\0".join(command).encode())
    for name in ("emulation.h", "machine.h", *SOURCES):
        digest.update((FOLDER / name).read_bytes())
    folder = cache_root() / f"emulation-{digest.hexdigest()[:20]}"
    library = folder / "libemulation.so"  # not libcuda.so.1: cuda.bindings would take it for one
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", "the emulation"):
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                built = Path(work, library.name)
                subprocess.run([*command, *SOURCES, "-o", built, "-ldl"], cwd=FOLDER, check=True)
                os.replace(built, library)
    return library


def forget() -> None:
    """What was found out about one driver does not hold for the next."""
    for function in (_cuda.emulating, _cuda._module, _cuda._compiler, _cuda.device, _cuda.why_not):
        function.cache_clear()
    _cuda._loaded.clear()
    backends._chosen.clear()
    forget_plans()


def forget_plans() -> None:
    for room in ROOMS:
        backends.launcher(room, "cuda")._plans.clear()


@contextlib.contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def emulation(*flags: str) -> Iterator[None]:
    try:
        with environment("KERNELS_CUDA_DRIVER", str(driver(*flags))):
            forget()
            yield
    finally:
        forget()


def order(seed: int) -> contextlib.AbstractContextManager[None]:
    """Launches inside order their threads by this seed."""
    return environment("KERNELS_EMULATION_SEED", str(seed))


class Launch(NamedTuple):
    """What was given to `_cuda.launch`, and addresses in the order of the struct."""

    room: str
    header: str
    function: str  # the instantiation, as in norms::forward_held<float, 4, ...>
    most: int
    grid: _cuda.Grid
    numbers: dict[str, Any]
    addresses: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.function.partition("<")[0].rpartition("::")[2]


@contextlib.contextmanager
def recorded(run: bool = False) -> Iterator[list[Launch]]:
    """The launches of the plans that are made inside the block, in order; each is also run, if asked for."""
    found, make = [], _cuda.launch

    def record(room, header, function, most, index, grid, numbers):
        launch = make(room, header, function, most, index, grid, numbers) if run else None

        def call(stream, *addresses):
            found.append(Launch(room, header, function, most, grid, numbers, addresses))
            if launch is not None:
                launch(stream, *addresses)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "launch", record)
        yield found
