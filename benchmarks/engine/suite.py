"""From a suite's cases to rows of figures: gate, then interleaved rounds, then how many times faster the fused one is.

One set of rules for every suite: nothing is timed before its outputs and gradients passed the gate, contestants take
turns in every round, medians come with their spread, losses are shown.

An operator's benchmark is one file in ops/ that defines SUITE, and a name in SUITES of benchmarks/__main__.py:

* a Case, a NamedTuple with at least name, label (unique) and dtype; and cases(full, names, shapes), which lists them;
* work(case, device): a Work, seeded by the case, with its tensors, the gradients of its outputs, and its contestants.
  Contestants are functions of the tensors that return a list of outputs: EAGER, the published code's form, by which the
  gate judges the others; FUSED, this library; between them the best stock forms, or all a reader would write instead;
* describe(case): its sizes for the JSON; and necessary_bytes or flops, whichever limits the operator.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from benchmarks.engine import scaling
from benchmarks.engine.gate import Gate
from benchmarks.engine.measure import (
    DeviceClock,
    Timing,
    WallClock,
    clock,
    interleave,
    peak_bytes,
    spread,
    wall_us_per_call,
)
from benchmarks.engine.progress import Progress
from benchmarks.engine.work import EAGER, FUSED, INTO, MODES, Contestant, Json, Shape, Work, dtype_name
from kernels import BackendUnavailable

# Rows whose round takes longer get fewer rounds: their spread is small and minutes are dear.
SLOW_MS, SLOW_ROUNDS = 500.0, 3


class Case(Protocol):
    """What all cases have in common: one operator at one size and dtype."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...


class Suite(NamedTuple):
    """One group of operators: what is measured of it, and how its report names things."""

    name: str  # of its files
    title: str
    operators: tuple[str, ...]  # as --op takes them
    about: dict[str, str]  # every contestant, in the order of the report
    legend: str
    column: tuple[str, str]  # heading, and which figure of the fused contestant stands under it
    groups: tuple[tuple[str, ...], ...]  # by which keys of a row the summary tells ratios apart; the first is printed
    # (full, names; all when empty, shapes instead of the published ones; a suite without shapes has no cases then)
    cases: Callable[[bool, Sequence[str], Sequence[Shape]], Sequence[Any]]
    work: Callable[[Any, torch.device], Work]
    describe: Callable[[Any], Json]  # a case's sizes
    modes: Callable[[Any], tuple[bool, ...]] = lambda case: (False, True)  # backward or not
    # either of these adds figures to a contestant's times, of a case and backward or not
    flops: Callable[[Any, bool], int] | None = None
    necessary_bytes: Callable[[Any, bool], int] | None = None  # with it a copy of so many bytes is measured beside
    notes: dict[str, tuple[str, ...]] = {}  # what a reader must know, by kind of device
    # what goes into the result besides rows; no cases when the run was interrupted
    extras: Callable[[Sequence[Any], torch.device, bool], Json] = lambda cases, device, full: {}
    pictures: Callable[[Json], dict[str, bytes]] = lambda result: {}  # PNGs besides the speed-ups, by name


def run(
    suite: Suite, cases: Sequence[Case], device: torch.device, rounds: int, skip: Sequence[str] = ()
) -> Iterator[Json]:
    """Measures row after row. Close it (or let KeyboardInterrupt through) at any time: yielded rows are whole."""
    progress = Progress(sum(len(suite.modes(case)) for case in cases))
    try:
        for case in cases:
            progress.show(f"{case.label}: reference")
            failed: Json | None = None
            try:
                given = suite.work(case, device)
                gate = Gate(case.label, case.dtype, given)
            except RuntimeError as error:  # OracleError, or no memory for a case of this size
                failed = _failed(error, progress)
            for backward in suite.modes(case):
                progress.show(f"{case.label} {MODES[backward]}")
                row = _describe(suite, case, backward)
                try:
                    row |= failed or _measure(suite, case, given, backward, gate, device, rounds, skip)
                except RuntimeError as error:
                    row |= _failed(error, progress)
                yield row
                progress.step()
    finally:
        progress.close()


def _failed(error: RuntimeError, progress: Progress) -> Json:
    progress.note(_first_line(error))
    return {"error": _first_line(error), "noisy": False, "providers": {}}


def _describe(suite: Suite, case: Case, backward: bool) -> Json:
    row = {
        "operator": case.name,
        "label": case.label,
        **suite.describe(case),
        "dtype": dtype_name(case.dtype),
        "mode": MODES[backward],
    }
    return row | ({"necessary_bytes": suite.necessary_bytes(case, backward)} if suite.necessary_bytes else {})


def row_label(row: Json) -> str:
    """Of the row's case. Rows of norms measured before they were a suite carry only its parts."""
    if "label" in row:
        return row["label"]
    sizes = "x".join(map(str, row["shape"])) + (f" p{row['padding']}" if row["padding"] else "")
    return f"{row['operator']} {sizes} {row['dtype']} {row['memory_format']}"


def _measure(
    suite: Suite,
    case: Case,
    given: Work,
    backward: bool,
    gate: Gate,
    device: torch.device,
    rounds: int,
    skip: Sequence[str],
) -> Json:
    torch.compiler.reset()  # one row's graphs at a time: neither recompile limits nor shapes that turn dynamic
    nbytes = suite.necessary_bytes(case, backward) if suite.necessary_bytes else 0
    results: dict[str, Json] = {}
    timings = []
    for name, contestant in given.contestants.items():
        if backward not in contestant.modes or skipped(name, skip):
            continue
        mine = given.copied(contiguous=contestant.contiguous)
        function, results[name] = check(contestant, mine, backward, gate)
        if results[name]["status"] == "ok":
            call = mine.timed(function, backward)
            results[name]["peak_bytes"] = peak_bytes(call, backward, device)
            timings.append(Timing(name, call, backward))
    watch = clock(device)
    copies = prepared([copy_timing(nbytes, device)] if nbytes else [], results, watch)
    timings = prepared(timings, results, watch)
    start = time.perf_counter()
    for timing in timings:
        timing.sample(1)
    slow = (time.perf_counter() - start) * 1e3 > SLOW_MS
    wanted = min(SLOW_ROUNDS, rounds) if slow else rounds
    ran, disturbed = interleave([*copies, *timings], wanted)
    row: Json = {
        "rounds": ran,
        "rounds_disturbed": disturbed,
        "noisy": 2 * (ran - disturbed) < wanted,  # then disturbed rounds are among the samples
    }
    for timing in timings:
        results[timing.name] |= times(timing)
        if suite.flops:
            results[timing.name]["gflops"] = suite.flops(case, backward) / spread(timing.samples_ms)[1] / 1e6
        if device.type == "cuda" and timing.name in (FUSED, EAGER):
            results[timing.name]["wall_us_per_call"] = wall_us_per_call(timing)
        if device.type == "cpu" and timing.name == FUSED:
            row["scaling"] = scaling.measure(timing.call, backward)
    for copy in copies:
        copy_ms = spread(copy.samples_ms)[1]
        row["copy"] = times(copy) | bandwidth(copy, nbytes, copy_ms)
        for timing in timings:
            results[timing.name] |= bandwidth(timing, nbytes, copy_ms)
    add_speedups(results)
    return row | {"providers": results}


def skipped(name: str, skip: Sequence[str]) -> bool:
    """Whether `--skip` names this contestant; `torch.compile` is all that it compiles."""
    return name in skip or (name.startswith("torch.compile, ") and "torch.compile" in skip)


def check(contestant: Contestant, mine: Work, backward: bool, gate: Gate) -> tuple[Any, Json]:
    """What to time, and its status: "ok", "FAIL" (wrong result), "absent" (not on this machine) or "error" (it
    raised)."""
    function, result = contestant.function, {"status": "ok", "reason": ""}
    try:
        if contestant.compiles:
            function = torch.compile(function, dynamic=False)
            start = time.perf_counter()
            mine.call(function, backward)
            result["compile_seconds"] = time.perf_counter() - start
        verdict = gate.judge(mine.call(function, backward))
    except BackendUnavailable as error:
        return function, {"status": "absent", "reason": str(error)}
    except Exception as error:  # somebody else's code: a compiler that crashes costs its own cell, not the run
        return function, {"status": "error", "reason": _first_line(error)}
    result["errors"] = mine.named(verdict.errors, backward)
    result["limits"] = mine.named(gate.limits[: len(verdict.errors)], backward)
    if not verdict.passed:
        result |= {"status": "FAIL", "reason": verdict.reason}
    return function, result


def copy_timing(nbytes: int, device: torch.device) -> Timing:
    """A copy that moves so many bytes, half of them read and half written, into memory that exists."""
    source, target = (torch.ones(max(1, nbytes // 2 // 4), device=device) for _ in range(2))
    return Timing("copy", functools.partial(target.copy_, source))


def prepared(timings: Sequence[Timing], results: dict[str, Json], watch: WallClock | DeviceClock) -> list[Timing]:
    """Those that the clock can time; the others (no CUDA graph of them) are marked in `results`."""
    ready = []
    for timing in timings:
        try:
            watch.prepare(timing)
            ready.append(timing)
        except RuntimeError as error:
            if timing.name not in results:
                raise
            results[timing.name] |= {"status": "error", "reason": f"not timed: {_first_line(error)}"}
    return ready


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def times(timing: Timing) -> Json:
    low, median, high = spread(timing.samples_ms)
    return {"median_ms": median, "p20_ms": low, "p80_ms": high, "samples_ms": timing.samples_ms}


def bandwidth(timing: Timing, nbytes: int, copy_ms: float) -> Json:
    median = spread(timing.samples_ms)[1]
    return {"percent_of_copy": 100 * copy_ms / median, "gbytes_per_s": nbytes / median / 1e6}


def add_speedups(results: dict[str, Json]) -> None:
    """Adds to every baseline how many times faster the fused implementation is, and whether it loses."""
    fused = results.get(FUSED, {}).get("median_ms")
    for name, result in results.items():
        if fused is not None and name not in (FUSED, INTO) and "median_ms" in result:
            result["fused_speedup"] = result["median_ms"] / fused
            result["loss"] = result["fused_speedup"] < 1
