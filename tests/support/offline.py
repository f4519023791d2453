"""Triton kernels compiled for GPUs that are not here: launches recorded instead of run, and what each would use.

A launcher runs on meta tensors and its launches are recorded (`recorded`, launches.py): so the tiles, warps, alignments
and constants that are compiled are the launcher's, not a copy kept here.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"):
    pytest.skip("TRITON_INTERPRET is set: kernels are interpreted, not compiled", allow_module_level=True)

from support.launches import Launch, recorded  # noqa: E402, F401 (recorded is for the tests that import this)
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

POINTER = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
SHARED = {80: 166912, 90: 232448, 100: 232448}  # bytes a program may use
REGISTER_FILE = 65536
GFX942 = GPUTarget("hip", "gfx942", 64)


class Resources(NamedTuple):
    registers: int  # of a thread
    spilled: int  # bytes of stores and loads
    shared: int  # bytes of a program


# ---- compiling -------------------------------------------------------------------------------------------------------


def source(launch: Launch) -> ASTSource:
    """The launch as triton's just-in-time compiler would specialise it."""
    names = launch.kernel.arg_names
    values = dict(zip(names, launch.args)) | launch.constants
    assert list(values) and set(values) == set(names), "arguments do not match the kernel's"
    plain = {p.name for p in launch.kernel.params if p.do_not_specialize}
    compiled_in = {p.name for p in launch.kernel.params if p.is_constexpr}
    constants, attrs = {}, {}

    def kind(value, path: tuple, constant: bool, plain: bool):
        if isinstance(value, tuple) and not constant:  # inside, do_not_specialize has no effect
            return tuple(kind(v, (*path, i), False, False) for i, v in enumerate(value))
        aligned, found = False, "fp32"
        if isinstance(value, torch.Tensor):
            found, aligned = POINTER[value.dtype], value.storage_offset() * value.element_size() % 16 == 0
        elif constant or value is None or (isinstance(value, int) and value == 1 and not plain):
            constants[path] = value
            return "constexpr"
        elif isinstance(value, int):
            found, aligned = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0 and not plain
        if aligned:
            attrs[path] = [["tt.divisibility", 16]]
        return found

    signature = {name: kind(values[name], (i,), name in compiled_in, name in plain) for i, name in enumerate(names)}
    return ASTSource(launch.kernel, signature, constants, attrs)


@functools.cache
def assembler() -> str:
    """triton's own ptxas for the newest PTX, which counts registers and spills; empty where the wheel has none."""
    path = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "ptxas-blackwell")
    return path if os.access(path, os.X_OK) else ""


# Triton is the second implementation there, so one generation stands for all by default.
every_generation = pytest.mark.parametrize(
    "capability", [90, *(pytest.param(other, marks=pytest.mark.slow) for other in (80, 100))]
)
needs_assembler = pytest.mark.skipif(
    not assembler(), reason="this triton has no ptxas-blackwell, which counts registers and spilled bytes"
)


def compile_for(launch: Launch, target: GPUTarget):
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
    return triton.compile(source(launch), target=target, options=options)


def resources(launch: Launch, capability: int) -> Resources:
    compiled = compile_for(launch, GPUTarget("cuda", capability, 32))
    ptx = compiled.asm["ptx"]
    arch = re.search(r"\.target\s+(sm_\w+)", ptx).group(1)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.ptx")
        with open(path, "w") as file:
            file.write(ptx)
        command = [assembler(), "-v", f"--gpu-name={arch}", path, "-o", os.path.join(folder, "kernel.cubin")]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stderr
    registers = int(re.search(r"Used (\d+) registers", text).group(1))
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
    return Resources(registers, spilled, compiled.metadata.shared)


def kernels_of(*modules) -> set[str]:
    """Names of the kernels that launchers may start."""
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if hasattr(value, "arg_names") and name[0] != "_" and value.__module__ == module.__name__
    }


def key(launch: Launch) -> tuple:
    src = source(launch)
    return launch.name, launch.warps, str(src.signature), str(src.constants), str(src.attrs)


def distinct(found: Iterable[Launch]) -> list[Launch]:
    """One launch for each kernel that would be compiled."""
    return list({key(launch): launch for launch in reversed(list(found))}.values())[::-1]


def describe(launch: Launch, telling: tuple[str, ...] = ()) -> str:
    blocks = {k: v for k, v in launch.constants.items() if k.startswith("BLOCK") or k in telling}
    return f"{launch.name} warps={launch.warps} {blocks}"


def in_parallel(function, items: list) -> list:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return list(pool.map(function, items))


# ---- what is asserted ------------------------------------------------------------------------------------------------


def over_budget(launch: Launch, capability: int, most: Resources, telling: tuple[str, ...]) -> str:
    """What the launch has too much of, empty if nothing."""
    used = resources(launch, capability)
    if used.shared > min(most.shared, SHARED[capability]):
        return f"{describe(launch, telling)}: {used.shared} bytes of shared memory on sm_{capability}"
    if used.registers > most.registers or launch.warps * 32 * used.registers > REGISTER_FILE:
        return f"{describe(launch, telling)}: {used.registers} registers on sm_{capability}"
    if used.spilled > most.spilled:
        return f"{describe(launch, telling)}: {used.spilled} bytes spilled on sm_{capability}"
    return ""


def assert_fit(
    found: list[Launch],
    capability: int,
    spilled: int = 0,
    telling: tuple[str, ...] = (),
    *,
    registers: int = 255,
    shared: int = max(SHARED.values()),
) -> None:
    """The launches fit the device, and take no more than this of a thread's registers and a program's memory."""
    most = Resources(registers, spilled, shared)
    used = in_parallel(lambda launch: over_budget(launch, capability, most, telling), found)
    problems = [p for p in used if p]
    assert found and not problems, "\n".join(problems)


def assert_compile(found: list[Launch], target: GPUTarget) -> None:
    """No assembler to count for this target: that it compiles, and its shared memory."""
    compiled = in_parallel(lambda launch: compile_for(launch, target), found)
    assert compiled and all(kernel.metadata.shared <= 65536 for kernel in compiled)


@pytest.fixture(autouse=True)
def one_parser_at_a_time(monkeypatch):
    """CPython 3.11 counts the recursion of ast.parse per interpreter, not per thread: two at once can end in "AST
    constructor recursion depth mismatch"."""
    parse, lock = JITFunction.parse, threading.Lock()

    def alone(self):
        with lock:
            return parse(self)

    monkeypatch.setattr(JITFunction, "parse", alone)
