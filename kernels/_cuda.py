"""The native CUDA kernels: whether this machine can run them, and one kernel's launch with its arguments.

A launcher describes a launch once for each shape (`launch`): which instantiation, its grid, and every number of the
room's struct of arguments by name. What it gets is called with a stream and addresses for every tensor of that shape.
The struct is declared in csrc/cuda/ROOM/args.h alone; Python reads it there, so the two cannot differ.

`KERNELS_CUDA_DRIVER` names another driver library than libcuda.so.1. That of tests/support/emulation runs the kernels
on the host, on CPU tensors, as TRITON_INTERPRET=1 does triton's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch

from kernels import _cuda_build
from kernels._build import LAUNCHER, load_library
from kernels._cache import BuildError

# How kernels call a dtype: the number in a struct of arguments is the position here.
DTYPES = {torch.float32: "float", torch.bfloat16: "gpu::bf16", torch.float16: "gpu::fp16", torch.float64: "double"}
DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}

LEAST_CAPABILITY = (8, 0)  # bfloat16 in hardware, cp.async

_MULTIPROCESSORS, _MAJOR, _MINOR, _SHARED = 16, 75, 76, 97  # numbers of CUdevice_attribute

Launch = Callable[..., None]  # (stream, *addresses), addresses in the order of the struct


# ---- this machine ----------------------------------------------------------------------------------------------------


def driver() -> str:
    """The driver library to open."""
    return os.environ.get("KERNELS_CUDA_DRIVER", "").strip() or "libcuda.so.1"


@functools.cache
def emulating() -> bool:
    """Whether a driver of tests is named, whose kernels run on CPU tensors."""
    return driver() != "libcuda.so.1"


@functools.cache
def _module() -> ModuleType:
    """csrc/cuda/launch.cpp, built if need be, with its driver open. Raises BuildError or OSError."""
    module, _ = load_library(LAUNCHER)
    module.open_driver(driver())
    return module


@functools.cache
def _compiler() -> _cuda_build.Nvrtc | _cuda_build.Emulated:
    if emulating() and hasattr(ctypes.CDLL(driver()), "emulated_compile"):
        return _cuda_build.Emulated(driver())
    return _cuda_build.Nvrtc()


class Device(NamedTuple):
    index: int
    arch: str
    sms: int  # multiprocessors
    shared: int  # bytes of shared memory that one block may use
    cluster: int  # blocks of the largest cluster


@functools.cache
def device(index: int) -> Device:
    """What kernels need to know of a device; -1, which CPU tensors have, is the emulation's."""
    index = max(index, 0)
    ask = functools.partial(_module().attribute, index)
    major, minor = ask(_MAJOR), ask(_MINOR)
    return Device(index, f"sm_{major}{minor}", ask(_MULTIPROCESSORS), ask(_SHARED), 8 if major >= 9 else 1)


@functools.cache
def why_not(index: int = 0) -> str:
    """Why the kernels cannot run on CUDA device `index`; empty when they can."""
    try:
        if not emulating():
            if torch.version.hip:
                return "this torch is for ROCm; triton serves AMD devices"
            if not torch.cuda.is_available():
                return "no CUDA device"
            capability = torch.cuda.get_device_capability(index)
            if capability < LEAST_CAPABILITY:
                return f"the device has compute capability {capability[0]}.{capability[1]}, want 8.0 or more"
        arch = device(index).arch
        if not _compiler().knows(arch):
            return f"the device is {arch}, which {_compiler().version} does not know"
    except BuildError as error:
        return str(error)
    except (OSError, RuntimeError) as error:  # the driver, or torch.cuda in a bad state
        return " ".join(f"the CUDA driver cannot be used: {error}".split())
    return ""


def report() -> list[str]:
    """The lines of backend_report()."""
    why = why_not()
    if why:
        return [f"cuda       unavailable: {why}"]
    version, arch = _compiler().version, device(0).arch
    kernels = [record for record in _cuda_build.built() if (record["compiler"], record["arch"]) == (version, arch)]
    lines = [f"cuda       active, {version}, {arch}; {len(kernels)} kernels built"]
    for record in sorted(kernels, key=lambda record: record["kernel"]):
        takes = "{registers} registers, {spilled} bytes spilled, {shared} bytes shared".format(**record["takes"])
        lines.append(f"           {record['kernel']}: {takes}, {record['seconds']} s")
    return lines


# ---- structs of arguments --------------------------------------------------------------------------------------------

_FIELD = re.compile(r"^\s+(?:const )?(void\*|long long|int|float) (\w+)(?:\[(\d+)\])?;", re.MULTILINE)
_CODES = {"void*": "Q", "long long": "q", "int": "i", "float": "f"}


class Arguments(NamedTuple):
    """The struct of a room's kernels, as csrc/cuda/ROOM/args.h declares it."""

    pointers: tuple[str, ...]  # names; an array's have its index behind them
    numbers: dict[str, int]  # how many of each
    format: struct.Struct
    type: str

    def pack(self, values: dict[str, Any]) -> bytes:
        """The struct with null pointers. Every number has to be there, by its name; arrays are sequences."""
        if values.keys() != self.numbers.keys():
            wrong = sorted(values.keys() ^ self.numbers.keys())
            raise TypeError(f"{self.type}: {', '.join(wrong)} missing, or not of the struct")
        flat: list[Any] = [0] * len(self.pointers)
        for name, many in self.numbers.items():
            value = values[name]
            given = list(value) if isinstance(value, (tuple, list)) else [value]
            flat += given + [0] * (many - len(given))
        return self.format.pack(*flat)


@functools.cache
def arguments(room: str) -> Arguments:
    """Reads the struct. Pointers have to come first, then numbers of 8 bytes, then of 4: so nothing is padded."""
    text = _cuda_build.headers(room)[f"{room}/args.h"]
    found = re.search(r"namespace (\w+) \{", text)
    fields = _FIELD.findall(text)
    codes = "".join(_CODES[kind] * int(many or 1) for kind, _, many in fields)
    assert found and re.fullmatch("Q+q*[if]*", codes), f"{room}/args.h: {codes}"
    if struct.calcsize(f"={codes}") % 8:
        codes += "4x"
    pointers = [
        name if not many else f"{name}{i}"
        for kind, name, many in fields
        if kind == "void*"
        for i in range(int(many or 1))
    ]
    numbers = {name: int(many or 1) for kind, name, many in fields if kind != "void*"}
    return Arguments(tuple(pointers), numbers, struct.Struct(f"={codes}"), f"{found[1]}::Args")


# ---- launches --------------------------------------------------------------------------------------------------------

_loaded: dict[tuple, int] = {}  # (room, function, device): handle


def _function(room: str, header: str, function: str, threads: int, index: int) -> int:
    key = (room, function, index)
    found = _loaded.get(key)
    if found is None:
        known = arguments(room)
        text = _cuda_build.source(room, header, function, known.type, threads, known.format.size)
        path = _cuda_build.image(_compiler(), room, text, device(index).arch, f"{room} {function}")
        data = os.fsencode(path) + b"\0" if isinstance(_compiler(), _cuda_build.Emulated) else path.read_bytes()
        found = _loaded[key] = _module().load(data, "kernel", index)
    return found


PlanT = TypeVar("PlanT")


class Plans(dict[tuple, PlanT]):
    """A room's plans by what a call has to match. Some thousand of them, 5 KB each: who sees ever new shapes begins
    anew."""

    def __setitem__(self, key: tuple, plan: PlanT) -> None:
        if len(self) >= 4096:
            self.clear()
        super().__setitem__(key, plan)


class Grid(NamedTuple):
    blocks: int  # a multiple of `cluster`
    threads: int
    cluster: int = 1
    shared: int = 0  # bytes of dynamic shared memory of a block


def launch(room: str, header: str, function: str, most: int, index: int, grid: Grid, numbers: dict[str, Any]) -> Launch:
    """A launch of one instantiation, built if need be. header: the file of csrc/cuda/ROOM that has it; most: threads of
    a block at most, for its registers. Raises BuildError."""
    known, index = arguments(room), max(index, 0)
    handle = _function(room, header, function, most, index)
    return _module().Launch(handle, index, *grid, len(known.pointers), known.pack(numbers))


def stream(index: int) -> int:
    """torch's current stream of a device."""
    return 0 if emulating() else torch._C._cuda_getCurrentRawStream(index)
