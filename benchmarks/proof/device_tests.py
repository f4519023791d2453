"""The tests that are marked `gpu`: the cases of the emulation and of Triton's interpreter on the real driver, and those
that only a device has (streams, graphs, a second device)."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.engine import machine
from benchmarks.engine.work import Json
from benchmarks.proof import processes
from benchmarks.proof.part import Asked, NotHere, OutOfTime

# The native kernels, and what only a device has, first: where time is short, the second opinion waits.
RUNS = {"CUDA": "gpu and not slow and not triton", "Triton": "gpu and not slow and triton"}
# Which would take the tests to the CPU, or past what is to be tested.
ELSEWHERE = ("TRITON_INTERPRET", "KERNELS_CUDA_DRIVER", "KERNELS_IMPL")
WORKERS = 10  # at most: most of the time goes into compiling kernels, on one core each; a context takes half a GiB
NAMED = 40  # failures whose names are kept


def run(asked: Asked, found: Json) -> None:
    tests = machine.ROOT / "tests" / "kernels"
    if not tests.is_dir():
        raise NotHere("there are no tests beside this package: it needs a checkout of the repository")
    if importlib.util.find_spec("pytest") is None:
        raise NotHere("pytest is not installed")
    found["runs"] = {}
    for name, selection in RUNS.items():
        report = asked.folder / f"{name}.xml"
        began = time.monotonic()
        print(f"  tests, {name}: at most {asked.until - began:.0f} s", file=sys.stderr, flush=True)
        try:
            status = run_pytest(selection, report, asked)
        finally:  # a run that was ended has written a report, too
            found["runs"][name] = read(report) | {"seconds": time.monotonic() - began, "selection": selection}
        mine = found["runs"][name]
        if status not in (0, 1):
            raise RuntimeError(f"{name}: pytest ended with status {status}: {last_line(report.with_suffix('.log'))}")
        if status == 1 and not mine["failed"]:
            raise RuntimeError(f"{name}: pytest failed without a test that did")
    if wrong := {name: mine["failed"] for name, mine in found["runs"].items() if mine["failed"]}:
        raise AssertionError(", ".join(f"{name}: {count} failed" for name, count in wrong.items()))


def run_pytest(selection: str, report: Path, asked: Asked) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-m", selection, f"--junitxml={report}", "-p", "no:cacheprovider"]
    command += [f"--rootdir={machine.ROOT}", *(str(machine.ROOT / path) for path in asked.sizes["paths"])]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout=120"]
    if importlib.util.find_spec("xdist") and asked.sizes["workers"] > 1:
        command += ["-n", str(asked.sizes["workers"]), "--dist", "worksteal"]
    env = {name: value for name, value in processes.environment(OMP_NUM_THREADS="1").items() if name not in ELSEWHERE}
    with open(report.with_suffix(".log"), "w") as log:
        process = processes.start(command, env, log)
        try:
            return processes.wait(process, asked.until)
        except OutOfTime:
            raise OutOfTime(f"within the tests of {report.stem}") from None


def read(report: Path) -> Json:
    """Counts of a junit file, and which failed; zeros where there is none, or not the whole of one."""
    found: Json = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    try:
        # the test that a run was ended in has no name
        cases = [case for case in ET.parse(report).iter("testcase") if case.get("name")]
    except (OSError, ET.ParseError):
        return found
    for case in cases:
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        if bad is not None:
            found["failed"] += 1
            why = (bad.get("message") or "").strip().splitlines()[:1]
            name = f"{case.get('classname')}::{case.get('name')}"
            found["failures"] += [{"test": name, "why": "".join(why)[:300]}] * (len(found["failures"]) < NAMED)
        else:
            found["skipped" if case.find("skipped") is not None else "passed"] += 1
    return found


def last_line(log: Path) -> str:
    return "".join(log.read_text().strip().splitlines()[-1:])[:300] if log.exists() else ""


def workers() -> int:
    return max(1, min(WORKERS, (os.cpu_count() or 1) - 2))
