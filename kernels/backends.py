"""Which implementations this machine can run: decided once, with the reason for each that it cannot.

`KERNELS_IMPL` overrides what `impl="auto"` picks, for debugging; `KERNELS_CPU_ISA` forces a lower instruction set.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence

import torch

from kernels import _native

IMPLS = ("auto", "reference", "cpu", "triton", "cuda")


class BackendUnavailable(RuntimeError):
    """An implementation was asked for by name and cannot run; the message says why."""


@functools.cache
def triton_reason() -> str:
    """Why triton cannot run here; empty when it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is not installed ({error})"
    if interpreting() or torch.cuda.is_available():
        return ""
    return "no CUDA or ROCm device (TRITON_INTERPRET=1 runs its kernels in the interpreter, for tests)"


def interpreting() -> bool:
    """Whether triton kernels run in triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def cpu_reason() -> str:
    """Why the C++ operators cannot run here; empty when they can. Builds them at the first call."""
    try:
        _native.load()
    except _native.BuildError as error:
        return str(error)
    return ""


def reason(impl: str, x: torch.Tensor, offered: Sequence[str], dtypes: Sequence[torch.dtype]) -> str:
    """Why `impl` cannot take `x`; empty when it can. `offered`, `dtypes`: what the operator has, and for what."""
    if impl == "reference":
        return ""
    if impl not in offered:
        return f"this operator has no {impl} implementation (it has: {', '.join(offered)})"
    if x.dtype not in dtypes:
        return f"it computes {', '.join(str(d).removeprefix('torch.') for d in dtypes)}, not {x.dtype}"
    if impl == "cpu":
        return f"the tensors are on {x.device}" if x.device.type != "cpu" else cpu_reason()
    if triton_reason():
        return triton_reason()
    if x.device.type != "cuda" and not (x.device.type == "cpu" and interpreting()):
        return f"the tensors are on {x.device}"
    return ""


_auto: dict[tuple, str] = {}


def choose(impl: str, x: torch.Tensor, offered: Sequence[str], dtypes: Sequence[torch.dtype]) -> str:
    """The implementation to run for `x`.

    "auto" takes the fastest for the tensor's device: cpu or triton, else the reference (for float64 and for devices
    without kernels in silence, since nothing failed; with one warning when the C++ build failed). A name that cannot
    run raises BackendUnavailable with the reason.
    """
    if impl == "auto":
        key = (x.device.type, x.dtype, tuple(offered))
        found = _auto.get(key)
        if found is None:
            found = _auto[key] = _decide(x, offered, dtypes)
        return found
    if impl not in IMPLS:
        raise ValueError(f"impl: got {impl!r}, want one of {', '.join(map(repr, IMPLS))}")
    why = reason(impl, x, offered, dtypes)
    if why:
        raise BackendUnavailable(f"impl={impl!r} cannot run: {why}")
    return impl


def _decide(x: torch.Tensor, offered: Sequence[str], dtypes: Sequence[torch.dtype]) -> str:
    forced = os.environ.get("KERNELS_IMPL", "auto").strip() or "auto"
    if forced not in IMPLS:
        raise ValueError(f"KERNELS_IMPL: got {forced!r}, want one of {', '.join(IMPLS)}")
    if forced != "auto":
        why = reason(forced, x, offered, dtypes)
        if why:
            raise BackendUnavailable(f"KERNELS_IMPL={forced} cannot run: {why}")
        return forced
    wanted = {"cpu": "cpu", "cuda": "triton"}.get(x.device.type, "reference")
    why = reason(wanted, x, offered, dtypes)
    if not why:
        return wanted
    if x.dtype in dtypes and wanted in offered:
        warnings.warn(
            f"kernels: using the reference on {x.device.type}, which is slower: {why}. "
            "kernels.backend_report() says what this machine can run.",
            RuntimeWarning,
            stacklevel=4,
        )
    return "reference"


def backend_report() -> str:
    """What is active on this machine and why the rest is not, as text. Builds the C++ operators if need be."""
    lines = [f"torch {torch.__version__}, {torch.get_num_threads()} threads"]
    if cpu_reason():
        lines.append(f"cpu        unavailable: {cpu_reason()}")
    else:
        has = ", ".join(_native.load().supported())
        lines.append(f"cpu        active, {_native.selected_isa()} (this machine: {has})")
    if triton_reason():
        lines.append(f"triton     unavailable: {triton_reason()}")
    else:
        import triton

        where = "interpreter on CPU tensors" if interpreting() else torch.cuda.get_device_name()
        lines.append(f"triton     active, {triton.__version__}, {where}")
    lines.append("cuda       unavailable: no operator has a native CUDA implementation yet; triton serves GPUs")
    lines.append("reference  active (float64, other devices, second derivatives)")
    forced = os.environ.get("KERNELS_IMPL")
    if forced:
        lines.append(f"KERNELS_IMPL={forced} overrides the automatic choice")
    return "\n".join(lines)


def main() -> None:
    """Console script `kernels-report`."""
    print(backend_report())
