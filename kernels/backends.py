"""Which implementations this machine can run: decided once, with the reason for each that it cannot.

`KERNELS_IMPL` overrides what `impl="auto"` picks, for debugging; `KERNELS_CPU_ISA` forces a lower instruction set.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
import types
import warnings
from collections.abc import Sequence

import torch

from kernels import _commands, _cuda, _guard, _native

IMPLS = ("auto", "reference", "cpu", "triton", "cuda")

# For what the fused implementations are; float64 takes the reference.
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


KEYS = ("CPU", "CUDA")  # torch's, under which the registered ops are found


def checked_impl(impl: object) -> str:
    """impl, if it is one of the names."""
    if impl not in IMPLS:
        raise ValueError(f"impl: got {impl!r}, want one of {', '.join(map(repr, IMPLS))}")
    return impl


class BackendUnavailable(RuntimeError):
    """An implementation was asked for by name and cannot run; the message says why."""


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@functools.cache
def why_no_triton() -> str:
    """Why triton cannot run here; empty when it can."""
    try:
        import triton
        import triton.language  # noqa: F401  (not in a folder that happens to be called triton)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return f"triton is not installed ({error})"
        return f"triton does not import ({_said(error)})"
    except Exception as error:  # a triton that does not fit torch, Python or the driver raises anything
        return f"triton does not import ({_said(error)})"
    try:
        if interpreting() or torch.cuda.is_available():
            return ""
    except Exception as error:  # a driver in a bad state
        return f"torch.cuda does not answer ({_said(error)})"
    return "no CUDA or ROCm device (TRITON_INTERPRET=1 runs its kernels in the interpreter, for tests)"


def interpreting() -> bool:
    """Whether triton kernels run in triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def why_no_cpu() -> str:
    """Why the C++ operators cannot run here; empty when they can. Builds them at the first call."""
    try:
        _native.load()
    except _native.BuildError as error:
        return str(error)
    return ""


def why_not(impl: str, where: torch.device, dtype: torch.dtype) -> str:
    """Why `impl` cannot take such tensors; empty when it can."""
    if impl == "reference":
        return ""
    device = where.type
    if dtype not in FUSED_DTYPES:
        return f"it computes {', '.join(str(d).removeprefix('torch.') for d in FUSED_DTYPES)}, not {dtype}"
    if impl == "cpu":
        return f"the tensors are on {device}" if device != "cpu" else why_no_cpu()
    if impl == "cuda":
        if device != "cuda" and not (device == "cpu" and _cuda.emulating()):
            return f"the tensors are on {device}"
        return _cuda.why_not(where.index or 0)
    if why_no_triton():
        return why_no_triton()
    if device != "cuda" and not (device == "cpu" and interpreting()):
        return f"the tensors are on {device}"
    return ""


def choose(impl: str, *tensors: torch.Tensor | None, names: Sequence[str] = ("x",)) -> str:
    """The implementation to run on `tensors`: all of a call, the first of which says device and dtype. `names`: what
    messages call them.

    "auto" takes the fastest for the tensor's device: cpu, or cuda before triton, else the reference (for float64, for
    devices without kernels and for tensors without memory of their own in silence, since nothing failed; with one
    warning when no fused implementation of the device can run). A name that cannot run raises BackendUnavailable with
    the reason.
    """
    if torch.compiler.is_compiling():
        why = _guard.why_not_compiled(tensors, names)
    else:
        why = _guard.why_not(tensors, names)
    if why:
        return _without_addresses(impl, why)
    x = tensors[0]
    assert x is not None
    return _resolve(impl, x.device, x.dtype)


_chosen: dict[tuple, str] = {}


# A constant to torch.compile, which runs this while it traces: inside are a build, files and the environment.
@_guard.constant_to_compile
def _resolve(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    key = (impl, device, dtype)
    found = _chosen.get(key)
    if found is None:
        found = _chosen[key] = _decide(impl, device, dtype)
    return found


@_guard.constant_to_compile
def _without_addresses(impl: str, why: str) -> str:
    name, asked = _named(impl)
    if name not in ("auto", "reference"):
        raise BackendUnavailable(f'{asked} cannot run: {why}; impl="reference" and "auto" can')
    return "reference"


def _named(impl: str) -> tuple[str, str]:
    """(the implementation wanted, by whom): KERNELS_IMPL in the place of "auto"."""
    checked_impl(impl)
    if impl != "auto":
        return impl, f"impl={impl!r}"
    name = os.environ.get("KERNELS_IMPL", "auto").strip() or "auto"
    if name not in IMPLS:
        raise ValueError(f"KERNELS_IMPL: got {name!r}, want one of {', '.join(IMPLS)}")
    return name, f"KERNELS_IMPL={name}"


def _decide(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    impl, asked = _named(impl)
    if impl != "auto":
        why = why_not(impl, device, dtype)
        if why:
            raise BackendUnavailable(f"{asked} cannot run: {why}")
        return impl
    found, why = automatic(device, dtype)
    if found == "reference" and device.type in _AUTOMATIC and dtype in FUSED_DTYPES:
        warnings.warn(
            f"kernels: using the reference on {device.type}, which is slower: {why}. "
            "kernels.backend_report() says what this machine can run.",
            RuntimeWarning,
            stacklevel=5,
        )
    return found


_AUTOMATIC = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # by device, the best first


def automatic(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    """(what "auto" takes on a device, why that is none of the fused implementations)."""
    whys = []
    for impl in _AUTOMATIC.get(device.type, ()):
        why = why_not(impl, device, dtype)
        if not why:
            return impl, ""
        whys.append(why)
    return "reference", "; ".join(whys) or f"no kernels for {device.type}"


@functools.cache
def launcher(room: str, impl: str) -> types.ModuleType:
    """What hands this room's tensors to a fused implementation. Imported at first use: launch_triton imports triton."""
    return importlib.import_module(f"kernels.{room}.launch_{impl}")


def _cpu_lines() -> list[str]:
    try:
        why = why_no_cpu()
    except ValueError as error:  # KERNELS_CPU_ISA
        why = str(error)
    if why:
        return [f"cpu        unavailable: {why}"]
    has = ", ".join(_native.load().supported())
    return [
        f"cpu        active, {_native.selected_isa()} (this machine: {has})",
        f"           bfloat16 losses multiply in {_native.load().bfloat16_products()}",
        f"           {_native.built()}",
    ]


def _triton_line() -> str:
    if why_no_triton():
        return f"triton     unavailable: {why_no_triton()}"
    import triton

    try:
        where = "interpreter on CPU tensors" if interpreting() else torch.cuda.get_device_name()
    except Exception as error:
        where = f"a device without a name ({_said(error)})"
    return f"triton     active, {triton.__version__}, {where}"


def backend_report() -> str:
    """What is active on this machine and why the rest is not, as text. Builds the C++ operators if need be."""
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} threads", *_cpu_lines(), _triton_line()]
    lines += _cuda.report()
    lines.append("reference  active (float64, other devices, second derivatives)")
    forced = os.environ.get("KERNELS_IMPL", "").strip()
    if forced and forced not in IMPLS:
        lines.append(f"KERNELS_IMPL={forced} is an error: want one of {', '.join(IMPLS)}")
    elif forced:
        lines.append(f"KERNELS_IMPL={forced} overrides the automatic choice")
    return "\n".join(lines)


def main() -> int:
    """Console script `kernels-report`."""

    def report() -> int:
        text = backend_report()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # reasons name paths a terminal may be unable to show
        print(text)
        return 0

    return _commands.run(report)
