"""NVIDIA's compute-sanitizer over small calls of every native kernel: accesses beyond a tensor, races in shared
memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time

from benchmarks.engine.work import Json
from benchmarks.proof import processes
from benchmarks.proof.part import Asked, NotHere, OutOfTime
from benchmarks.proof.small_calls import ROOMS

TOOL = "compute-sanitizer"
# With what in the environment: torch's allocator hands out pieces of blocks of 2 MiB, and beside a tensor is another.
TOOLS: dict[str, dict[str, str]] = {"memcheck": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "racecheck": {}}
# Libraries ask the driver for functions that it does not have, which is no error of a kernel.
OPTIONS = ("--report-api-errors", "no")
ERRORS = (r"ERROR SUMMARY: (\d+) error", r"RACECHECK SUMMARY: .*\((\d+) error")
WARNINGS = r"RACECHECK SUMMARY: .* (\d+) warning"
SHOWN = 20  # lines of what a tool found


def find() -> str | None:
    folders = [os.environ.get("PATH", ""), *(f"{f}/bin" for f in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if f)]
    return shutil.which(TOOL, path=os.pathsep.join(folders))


def run(asked: Asked, found: Json) -> None:
    if not (tool := find()):
        raise NotHere(f"no {TOOL} in PATH, CUDA_HOME/bin or /usr/local/cuda/bin")
    found["sanitizer"], found["tools"] = tool, {}
    calls = [sys.executable, "-m", "benchmarks.proof.small_calls", str(asked.device), asked.sizes["impl"]]
    compile_kernels(calls, asked)
    for name, more in TOOLS.items():
        log = asked.folder / f"{name}.log"
        began = time.monotonic()
        print(f"  {name}: at most {asked.until - began:.0f} s", file=sys.stderr, flush=True)
        command = [tool, "--tool", name, *OPTIONS, "--log-file", str(log), *calls]
        with open(asked.folder / f"{name}.out", "w+") as printed:
            process = processes.start(command, processes.environment(**more), printed)
            try:
                status = processes.wait(process, asked.until)
            except OutOfTime:
                raise OutOfTime(f"within {name}") from None
            printed.seek(0)
            said = printed.read().strip().splitlines()[-1:]
        text = log.read_text(errors="replace") if log.exists() else ""
        found["tools"][name] = read(text) | {"calls": "".join(said), "seconds": time.monotonic() - began}
        mine = found["tools"][name]
        if mine["errors"] is None or "calls" not in mine["calls"]:
            raise RuntimeError(f"{name} ended with status {status} before all calls were made: {mine['calls'][:300]}")
    if wrong := {name: mine["errors"] for name, mine in found["tools"].items() if mine["errors"]}:
        raise AssertionError(", ".join(f"{name}: {count} errors" for name, count in wrong.items()))


def compile_kernels(calls: list[str], asked: Asked) -> None:
    """Without the sanitizer, which makes everything slow, a process for each room; and whether they run at all."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for room in ROOMS:
            running[room] = processes.start([*calls, room], processes.environment())
        for room, process in running.items():
            try:
                status = processes.wait(process, asked.until)
            except OutOfTime:
                raise OutOfTime(f"while the kernels of {room} were compiled") from None
            if status:
                raise RuntimeError(f"the small calls of {room} ended with status {status} without the sanitizer")
    finally:
        for process in running.values():
            processes.end(process)


def read(text: str) -> Json:
    """Of a tool's log: errors (None without a summary), warnings, the first lines."""
    errors = [int(count) for pattern in ERRORS for count in re.findall(pattern, text)]
    warnings = sum(map(int, re.findall(WARNINGS, text)))
    lines = [line.lstrip("= ") for line in text.splitlines() if line.startswith("=====")]
    shown = [line for line in lines if line and "COMPUTE-SANITIZER" not in line][:SHOWN] if sum(errors) else []
    return {"errors": sum(errors) if errors else None, "warnings": warnings, "lines": shown}
