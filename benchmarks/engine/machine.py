"""Where figures come from: machine, versions, commit, settings, and the frame of a result around its rows."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.engine.work import Json
from kernels import _native

SCHEMA = 1
SHARED = 0.08  # cores that others take on average, above which figures are noisy
ROOT = Path(__file__).resolve().parents[2]
_SETTINGS = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "MALLOC_",
    "LD_PRELOAD",
    "ATEN_",
    "TORCH",
    "KERNELS_",
    "TRITON_",
    "CUDA_",
    "PYTORCH_",
)


def provenance(device: torch.device) -> Json:
    return {
        "machine": machine(device),
        "versions": versions(device),
        "commit": commit(),
        "environment": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(_SETTINGS) and k != "TORCHINDUCTOR_CACHE_DIR"
        },
    }


def machine(device: torch.device) -> Json:
    out = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "os": platform.platform(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        out["gpu"] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_mib": properties.L2_cache_size / 2**20,
            "capability": f"{properties.major}.{properties.minor}",
            **_nvidia_smi(device.index or 0),
        }
    return out


def versions(device: torch.device) -> dict[str, str | None]:
    """On a GPU without the C++ operators, which would be built first, for minutes, and take no part."""
    try:
        isa: str | None = _native.selected_isa() if device.type == "cpu" else None
    except _native.BuildError as error:
        isa = f"no C++ operators: {error}"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "triton": _triton_version(),
        "kernels_isa": isa,
    }


def commit() -> Json:
    """Hash and whether the checkout has changes of its own; None for both outside a git checkout."""
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    # without the lock: a benchmark must not get in the way of a commit that is being made
    status = _output("git", "--no-optional-locks", "-C", str(ROOT), "status", "--porcelain")
    return {"hash": head, "dirty": None if head is None else bool(status)}


def slug(device: torch.device) -> str:
    """A folder name for results of this machine, like "amd-epyc-2-threads"."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_cpu_model()} {torch.get_num_threads()} threads"
    )
    name = re.sub(r"\((r|tm)\)|\bcpu\b|@.*?ghz|processor", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def command_line(module: str) -> str:
    return " ".join([f"python -m {module}", *sys.argv[1:]])


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _nvidia_smi(index: int) -> dict[str, str]:
    fields = (
        "driver_version",
        "clocks.sm",
        "clocks.max.sm",
        "clocks.mem",
        "power.draw",
        "power.limit",
        "temperature.gpu",
    )
    line = _output("nvidia-smi", f"--id={index}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    return {} if line is None else dict(zip(fields, (value.strip() for value in line.split(","))))


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


class Load:
    """How many cores other processes kept busy between construction and `others()`."""

    def __init__(self) -> None:
        self._began = self._now()

    def others(self) -> float | None:
        """None where /proc/stat does not exist."""
        if self._began is None or (now := self._now()) is None:
            return None
        wall, busy, own = (b - a for a, b in zip(self._began, now))
        return max(0.0, (busy - own) / max(wall, 1e-9))

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Wall seconds, busy core seconds of the machine, core seconds of this process and its finished children."""
        try:
            fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        except (OSError, ValueError, IndexError):
            return None
        user, nice, system, _, _, irq, softirq, steal = fields[:8]
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(os.times()[:4])


class Run:
    """When and of what code a run began, and not of an edit since."""

    def __init__(self, module: str, device: torch.device, gpu_clock: str = "CUDA time"):
        self.module, self.device = module, device
        self.kind = gpu_clock if device.type == "cuda" else "CPU wall time"
        self.start, self.provenance = time.perf_counter(), provenance(device)

    def result(self, rows: Sequence[Json], interrupted: bool, other_load: float | None, **more: object) -> Json:
        """The whole result, as it goes into the JSON."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "device": self.device.type,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "command": command_line(self.module),
            **more,
            "seconds": time.perf_counter() - self.start,
            "interrupted": interrupted,
            "other_load": other_load,
            **self.provenance,
            "rows": rows,
        }
