"""The C++ CPU operators: loaded at first use, built where the cache has no build, and their instruction set."""

from __future__ import annotations

import importlib
import itertools
import os
import threading
from types import ModuleType

import torch

from kernels._build import LEVELS, NCE_LEVELS, ROOMS, SOURCES, load_library
from kernels._cache import MODULE, Build, BuildError, cache_root

__all__ = [
    "DTYPE_CODES",
    "MODULE",
    "SOURCES",
    "BuildError",
    "built",
    "cache_root",
    "load",
    "pointer",
    "select_isa",
    "selected_isa",
]

_module: ModuleType | None = None  # ready: its instruction set is selected
_found: ModuleType | str | None = None  # decided once per process: the module, or why there is none
_build: Build | None = None  # what it was loaded from
_selected: str | None = None

_deciding = threading.Lock()


def _unlock() -> None:
    global _deciding
    _deciding = threading.Lock()


if hasattr(os, "register_at_fork"):  # a child must not wait for a thread that it does not have
    os.register_at_fork(after_in_child=_unlock)


def _find() -> ModuleType | str:
    global _build
    try:
        module, build = load_library()
    except BuildError as error:
        return str(error)
    except OSError as error:  # what no other message foresees
        return f"{type(error).__name__}: {error}"
    why = _difference(module)
    if why:
        return why
    _build = build
    return module


def _difference(module: ModuleType) -> str:
    """The first argument that a launch_cpu.py passes in another place than the library reads it; empty if there is
    none. They are plain integers: two that had changed places would be a write to a wrong address, not an error."""
    for room in ROOMS:
        launcher = importlib.import_module(f"kernels.{room}.launch_cpu")
        for function, passed in launcher.ARGUMENTS.items():
            read = getattr(getattr(module, function, None), "__doc__", None) or ""
            pairs = itertools.zip_longest(passed.split(), read.split(), fillvalue="no argument")
            for at, (ours, theirs) in enumerate(pairs, 1):
                if ours != theirs:
                    return (
                        f"csrc/cpu/{room}/bind.cpp does not read what kernels/{room}/launch_cpu.py passes to "
                        f"{function}: argument {at} is {ours} in Python and {theirs} in C++"
                    )
    return ""


def load() -> ModuleType:
    """The native module, built if need be. Raises BuildError with the reason that there is none, and ValueError for a
    `KERNELS_CPU_ISA` that cannot be had."""
    if _module is not None:
        return _module
    return _first_load()


def _first_load() -> ModuleType:
    global _module, _found
    wanted = os.environ.get("KERNELS_CPU_ISA", "").strip()
    if wanted and wanted not in (*LEVELS, *NCE_LEVELS):  # before a build that takes a minute
        raise ValueError(f"KERNELS_CPU_ISA: got {wanted!r}, want one of {', '.join((*LEVELS, *NCE_LEVELS))}")
    with _deciding:
        if _found is None:
            _found = _find()
    if isinstance(_found, str):
        raise BuildError(_found)
    if _selected is None:
        select_isa(wanted or _found.supported()[-1], _found)
    _module = _found
    return _module


def built() -> str:
    """What made the loaded module, and where it lies."""
    load()
    assert _build is not None
    return f"built by {_build.compiler}, in {_build.library.parent}"


def select_isa(name: str, module: ModuleType | None = None) -> None:
    """Uses the instruction set `name` from now on (`KERNELS_CPU_ISA` sets the first choice)."""
    global _selected
    module = module or load()
    if name not in (*module.supported(), *module.emulated()):
        raise ValueError(
            f"KERNELS_CPU_ISA: {name!r} does not run here; this machine has {', '.join(module.supported())}"
        )
    module.select(name)
    _selected = name


def selected_isa() -> str:
    """The instruction set in use."""
    load()
    return str(_selected)


DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DType of csrc/cpu/common/parallel.h


def pointer(t: torch.Tensor | None) -> int:
    """The address of t's first element for C++, null for None."""
    return 0 if t is None else t.data_ptr()
