"""CUDA kernels compiled by NVRTC for GPUs that are not here: launches recorded instead of run, and what each would use.

A launcher runs on meta tensors for a device that is only described (`planned`), so what is compiled, for how many
threads and with how much shared memory is the launcher's choice, not a copy kept here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from support.emulated import Launch, forget_plans, recorded

from kernels import _cuda, _cuda_build

DEVICES = {
    "sm_80": _cuda.Device(0, "sm_80", 108, 166912, 1),  # A100
    "sm_90": _cuda.Device(0, "sm_90", 132, 232448, 8),  # H100
    "sm_100": _cuda.Device(0, "sm_100", 148, 232448, 8),  # B200
    "sm_120": _cuda.Device(0, "sm_120", 170, 101376, 8),  # RTX 5090
}
REGISTER_FILE = 65536
# To compile a room takes 5 to 13 seconds for each: the oldest and the most common by default, all by `pytest -m slow`.
ARCHITECTURES = [pytest.param(arch, marks=() if arch == "sm_80" else pytest.mark.slow) for arch in DEVICES]
RESERVED = 1024  # bytes of shared memory that the system takes of a block


compiler = functools.cache(_cuda_build.Nvrtc)


def _has_binding() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # nor any `cuda`
        return False


# of the extra `test` on Linux; where it is installed and does not work, the tests fail
needs_nvrtc = pytest.mark.skipif(not _has_binding(), reason="cuda-bindings is not installed")


class Kernel(NamedTuple):
    """What one launch would use on one device."""

    launch: Launch
    arch: str
    registers: int
    spilled: int  # bytes of stores and loads
    shared: int  # bytes of a block, static and dynamic
    code: str  # SASS

    def count(self, pattern: str) -> int:
        """Instructions whose name matches."""
        return len(re.findall(rf"^\s+/\*\w+\*/\s+(?:@!?\w+ )?(?:{pattern})\b", self.code, re.MULTILINE))


@contextlib.contextmanager
def planned(arch: str) -> Iterator[list[Launch]]:
    """Launches inside are planned anew, for a device of this architecture, and recorded."""
    forget_plans()
    with pytest.MonkeyPatch.context() as patch, recorded() as found:
        patch.setattr(_cuda, "device", lambda index: DEVICES[arch])
        patch.setattr(_cuda, "stream", lambda index: 0)
        try:
            yield found
        finally:
            forget_plans()


def distinct(found: Iterable[Launch]) -> list[Launch]:
    """One launch for each kernel that would be compiled, that with the most shared memory."""
    largest = sorted(found, key=lambda launch: launch.grid.shared)
    return list({launch.function: launch for launch in largest}.values())


def compiled(launch: Launch, arch: str) -> Kernel:
    nvrtc, known = compiler(), _cuda.arguments(launch.room)
    text = _cuda_build.source(launch.room, launch.header, launch.function, known.type, launch.most, known.format.size)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "kernel.cubin")
        built, said = nvrtc.compile(text, launch.room, arch, out)
        assert built, said
        code = subprocess.run([disassembler(), "-c", out], capture_output=True, text=True, check=True).stdout
    taken = _cuda_build.resources(said)
    assert taken.registers, said
    return Kernel(launch, arch, taken.registers, taken.spilled, launch.grid.shared + taken.shared, code)


@functools.cache
def disassembler() -> str:
    """nvdisasm, of triton's wheel."""
    triton = pytest.importorskip("triton", reason="triton is not installed, whose wheel has nvdisasm")
    return os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "nvdisasm")


def all_compiled(found: Iterable[Launch], arch: str) -> list[Kernel]:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(lambda launch: compiled(launch, arch), distinct(found)))


def problems(kernels: Iterable[Kernel], most: Callable[[Kernel], int] = lambda kernel: 255) -> list[str]:
    """What kernels have too much of. most: registers of a thread."""
    found = []
    for kernel in kernels:
        threads, limit = kernel.launch.grid.threads, DEVICES[kernel.arch].shared - RESERVED
        about = f"{kernel.launch.function} on {kernel.arch}, {threads} threads:"
        if kernel.spilled or kernel.count("(LDL|STL)[.A-Z0-9]*"):
            found.append(f"{about} {kernel.spilled} bytes spilled, or arrays in local memory")
        if kernel.registers > most(kernel) or kernel.registers * kernel.launch.most > REGISTER_FILE:
            found.append(f"{about} {kernel.registers} registers")
        if kernel.shared > limit:
            found.append(f"{about} {kernel.shared} of {limit} bytes of shared memory")
    return found
