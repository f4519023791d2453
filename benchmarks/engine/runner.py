"""From cases to rows: gate, then time, then relate everything to the fused implementation."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.engine.gate import Gate, evaluate
from benchmarks.engine.measure import (
    Call,
    DeviceClock,
    Subject,
    WallClock,
    interleave,
    peak_bytes,
    spread,
    wall_us_per_call,
)
from benchmarks.engine.progress import Progress
from benchmarks.ops.norm import FUSED, INTO, Function, Provider
from benchmarks.ops.norm_cases import Case, Inputs, Row, dtype_name, make_inputs, necessary_bytes, rows
from kernels import BackendUnavailable

Json = dict[str, Any]


def run(cases: Sequence[Case], providers: Sequence[Provider], device: torch.device, rounds: int) -> Iterator[Json]:
    """Measures row after row. Close it (or let KeyboardInterrupt through) at any time: yielded rows are whole."""
    progress = Progress(sum(len(list(rows(case))) for case in cases))
    try:
        for case in cases:
            progress.show(f"{case.label}: reference")
            try:
                inputs = make_inputs(case, device)
                gate = Gate(case, inputs)
            except RuntimeError as error:  # OracleError, or no memory for a case of this size
                failed = _failed(error, progress)
                for row in rows(case):
                    yield {**_describe(row), **failed}
                    progress.step()
                continue
            for row in rows(case):
                progress.show(row.label)
                try:
                    result = _measure(row, inputs, gate, providers, device, rounds)
                except RuntimeError as error:
                    result = {**_describe(row), **_failed(error, progress)}
                yield result
                progress.step()
    finally:
        progress.close()


def _failed(error: RuntimeError, progress: Progress) -> Json:
    progress.note(_first_line(error))
    return {"error": _first_line(error), "providers": {}}


def _describe(row: Row) -> Json:
    return {
        "operator": row.case.op.name,
        "shape": list(row.case.shape),
        "padding": row.case.padding,
        "dtype": dtype_name(row.case.dtype),
        "memory_format": row.memory_format,
        "mode": row.mode,
        "necessary_bytes": necessary_bytes(row),
    }


def _measure(
    row: Row, inputs: Inputs, gate: Gate, providers: Sequence[Provider], device: torch.device, rounds: int
) -> Json:
    sets = argument_sets(inputs.nbytes, device)
    results: dict[str, Json] = {}
    nbytes = necessary_bytes(row)
    subjects = [copy_subject(nbytes, sets, device)]
    for provider in providers:
        function = provider.build(row)
        if function is None:
            continue
        channels_last = row.channels_last and not provider.nchw
        arranged = [inputs.arranged(channels_last, row.backward) for _ in range(sets)]
        result = results[provider.name] = _check(provider, function, row, arranged[0], gate)
        if result["status"] == "ok":
            calls = [bind(function, arguments, row.backward) for arguments in arranged]
            result["peak_bytes"] = peak_bytes(calls[0], row.backward, device)
            subjects.append(Subject(provider.name, calls, row.backward))
    copy, *timed = prepared(subjects, results, device)
    ran, disturbed = interleave([copy, *timed], rounds)
    copy_ms = spread(copy.samples_ms)[1]
    for subject in timed:
        results[subject.name] |= times(subject) | bandwidth(subject, nbytes, copy_ms)
        if device.type == "cuda":
            results[subject.name]["wall_us_per_call"] = wall_us_per_call(subject)
    relate(results)
    return {
        **_describe(row),
        "rounds": ran,
        "rounds_disturbed": disturbed,
        "noisy": 2 * (ran - disturbed) < rounds,  # then disturbed rounds are among the samples
        "argument_sets": sets,
        "copy": times(copy) | bandwidth(copy, nbytes, copy_ms),
        "providers": results,
    }


def argument_sets(nbytes: int, device: torch.device) -> int:
    """How many, of `nbytes` each: on CUDA so many that no set is still in the L2 cache at its turn; on a CPU one, as
    warm as its caches keep it."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(128, 1 + math.ceil(3 * cache / nbytes))


def copy_subject(nbytes: int, sets: int, device: torch.device) -> Subject:
    """A copy that moves so many bytes, half of them read and half written, into memory that exists."""
    count = max(1, nbytes // 2 // 4)
    pairs = [tuple(torch.ones(count, device=device) for _ in range(2)) for _ in range(sets)]
    return Subject("copy", [functools.partial(target.copy_, source) for target, source in pairs])


def prepared(subjects: Sequence[Subject], results: dict[str, Json], device: torch.device) -> list[Subject]:
    """Those that the clock can time; the others (no CUDA graph of them) are marked in `results`."""
    clock = DeviceClock() if device.type == "cuda" else WallClock()
    ready = []
    for subject in subjects:
        try:
            clock.prepare(subject)
            ready.append(subject)
        except RuntimeError as error:
            if subject.name not in results:
                raise
            results[subject.name] |= {"status": "error", "reason": f"not timed: {_first_line(error)}"}
    return ready


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def bind(function: Function, inputs: Inputs, backward: bool) -> Call:
    """One call: the forward, or forward and backward of every input."""
    tensors, grad = inputs
    if not backward:
        return lambda: function(*tensors)
    return lambda: torch.autograd.grad(function(*tensors), tensors, grad)


def _check(provider: Provider, function: Function, row: Row, inputs: Inputs, gate: Gate) -> Json:
    """Status "ok", "FAIL" (wrong result), "absent" (not on this machine) or "error" (it raised)."""
    result: Json = {"status": "ok", "reason": ""}
    try:
        if provider.compiles:
            start = time.perf_counter()
            evaluate(function, inputs, row.case.op.tensors, row.backward)
            result["compile_seconds"] = time.perf_counter() - start
        verdict = gate.judge(function, inputs, row.backward)
    except BackendUnavailable as error:
        return {"status": "absent", "reason": str(error)}
    except Exception as error:  # somebody else's code: a compiler that crashes costs its own column, not the run
        return {"status": "error", "reason": _first_line(error)}
    result["errors"], result["limits"] = verdict.errors, {name: gate.limits[name] for name in verdict.errors}
    if not verdict.passed:
        result |= {"status": "FAIL", "reason": verdict.reason}
    return result


def times(subject: Subject) -> Json:
    low, median, high = spread(subject.samples_ms)
    return {"median_ms": median, "p20_ms": low, "p80_ms": high, "samples_ms": subject.samples_ms}


def bandwidth(subject: Subject, nbytes: int, copy_ms: float) -> Json:
    median = spread(subject.samples_ms)[1]
    return {"percent_of_copy": 100 * copy_ms / median, "gbytes_per_s": nbytes / median / 1e6}


def relate(results: dict[str, Json]) -> None:
    """Adds to every baseline how many times faster the fused implementation is, and whether it loses."""
    fused = results.get(FUSED, {}).get("median_ms")
    for name, result in results.items():
        if fused is not None and name not in (FUSED, INTO) and "median_ms" in result:
            result["fused_speedup"] = result["median_ms"] / fused
            result["loss"] = result["fused_speedup"] < 1
