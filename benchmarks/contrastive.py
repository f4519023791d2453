"""The contrastive rooms against stock torch: gate, time, memory; tables and pictures.

Same rules as for the norms: nothing is timed before its outputs and gradients were compared with the published form in
float64, contestants take turns in every round, medians come with their spread, losses are shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import contrastive_plot as plot
from benchmarks.cases import MODES, dtype_name
from benchmarks.contrastive_cases import ABOUT, EAGER, FUSED, NAMES, Case, Function, Work, products_flops, work
from benchmarks.gate import distance
from benchmarks.measure import DeviceClock, Subject, WallClock, interleave, peak_bytes, spread
from benchmarks.progress import Progress
from benchmarks.report import summarise_ratios, write_atomically
from kernels import BackendUnavailable

Json = dict[str, Any]

FACTOR = 2.0  # of eager's own error in the same dtype
FLOOR = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SLOW_MS = 500.0  # rows whose round takes longer get three rounds: their spread is small and minutes are dear


def rows_of(case: Case) -> tuple[bool, ...]:
    """Backward or not. A tap is there for its backward."""
    return (True,) if case.name == "tap_patches" else (False, True)


def run(cases: Sequence[Case], device: torch.device, rounds: int, skip: Sequence[str] = ()) -> Iterator[Json]:
    """Measures row after row; close it at any time."""
    progress = Progress(sum(len(rows_of(case)) for case in cases))
    try:
        for case in cases:
            progress.show(case.label)
            given = work(case, device)
            exact, limits = _limits(case, given)
            for backward in rows_of(case):
                progress.show(f"{case.label} {MODES[backward]}")
                yield _measure(case, given, backward, exact, limits, device, rounds, skip)
                progress.step()
    finally:
        progress.close()


def _limits(case: Case, given: Work) -> tuple[list[torch.Tensor], list[float]]:
    """Results of the published form in float64, and how far each contestant's may be from them."""
    eager = given.contestants[EAGER]
    exact = given.copied(torch.float64).call(eager, True)
    own = given.copied().call(eager, True)
    return exact, [FACTOR * distance(a, b) + FLOOR[case.dtype] for a, b in zip(own, exact)]


def _contestants(case: Case, given: Work, skip: Sequence[str]) -> dict[str, Function]:
    found = dict(given.contestants)
    if case.compiled:
        for name in (n for n in given.contestants if n != FUSED):
            found[f"torch.compile, {name}"] = torch.compile(given.contestants[name], dynamic=False)
    return {name: f for name, f in found.items() if name not in skip and not name.startswith(tuple(skip) or ("\0",))}


def _measure(case: Case, given: Work, backward: bool, exact, limits, device, rounds: int, skip) -> Json:
    torch.compiler.reset()
    results: dict[str, Json] = {}
    subjects = []
    for name, function in _contestants(case, given, skip).items():
        mine = given.copied()
        start = time.perf_counter()
        result = results[name] = _judge(mine, function, backward, exact, limits)
        if name.startswith("torch.compile"):
            result["compile_seconds"] = time.perf_counter() - start
        if result["status"] == "ok":

            def call(mine: Work = mine, function: Function = function) -> object:
                return mine.call(function, backward)

            result["peak_bytes"] = peak_bytes(call, backward, device)
            subjects.append(Subject(name, [call], backward))
    clock = DeviceClock() if device.type == "cuda" else WallClock()
    for subject in subjects:
        clock.prepare(subject)
    start = time.perf_counter()
    for subject in subjects:
        subject.sample(1)
    slow = (time.perf_counter() - start) * 1e3 > SLOW_MS
    ran, disturbed = interleave(subjects, min(3, rounds) if slow else rounds)
    for subject in subjects:
        low, median, high = spread(subject.samples_ms)
        results[subject.name] |= {
            "median_ms": median,
            "p20_ms": low,
            "p80_ms": high,
            "samples_ms": subject.samples_ms,
            "gflops": products_flops(case, backward) / median / 1e6,
        }
    ours = results[FUSED].get("median_ms")
    for name, result in results.items():
        if name != FUSED and ours is not None and "median_ms" in result:
            result |= {"fused_speedup": result["median_ms"] / ours, "loss": result["median_ms"] < ours}
    return {
        "operator": case.name,
        "label": case.label,
        "batch": case.batch,
        "patches": case.patches,
        "bank": case.bank,
        "dtype": dtype_name(case.dtype),
        "mode": MODES[backward],
        "rounds": ran,
        "rounds_disturbed": disturbed,
        "noisy": 2 * disturbed > ran,
        "providers": results,
    }


def _judge(mine: Work, function: Function, backward: bool, exact, limits) -> Json:
    try:
        got = mine.call(function, backward)
    except BackendUnavailable as error:
        return {"status": "absent", "reason": str(error)}
    except Exception as error:  # somebody else's code: a compiler that crashes costs its own cell, not the run
        return {"status": "error", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    errors = [distance(a, b) for a, b in zip(got, exact)]
    wrong = [f"result {i}: {e:.2g}, limit {m:.2g}" for i, (e, m) in enumerate(zip(errors, limits)) if not e <= m]
    return {"status": "FAIL" if wrong else "ok", "reason": "; ".join(wrong), "errors": errors}


# ---- report ----------------------------------------------------------------------------------------------------------


def summarise(rows: Sequence[Json]) -> Json:
    """Ratios baseline / fused by operator, dtype and mode; losses; failures."""
    groups: dict[str, dict[str, list[float]]] = {}
    losses, failures = [], []
    for row in rows:
        where = f"{row['label']} {row['mode']}"
        for name, r in row["providers"].items():
            if "fused_speedup" in r:
                group = f"{row['operator']} {row['dtype']} {row['mode']}"
                groups.setdefault(group, {}).setdefault(name, []).append(r["fused_speedup"])
                if r["loss"]:
                    losses.append({"row": where, "baseline": name, "ratio": r["fused_speedup"], "noisy": row["noisy"]})
            if r["status"] in ("FAIL", "error"):
                failures.append({"row": where, "provider": name, "status": r["status"], "reason": r["reason"]})
    speedups = {g: {n: summarise_ratios(v) for n, v in by.items()} for g, by in groups.items()}
    return {"speedups": speedups, "losses": losses, "failures": failures}


def markdown(result: Json, provenance: Sequence[str]) -> str:
    summary = result["summary"]
    lines = [f"# Contrastive losses, sampling and weights: {result['kind']}", "", *provenance, ""]
    lines += [f"* **{name}**: {about}" for name, about in ABOUT.items()]
    lines += [
        "",
        "Milliseconds per call, median (20th to 80th percentile) of interleaved rounds; after a baseline's time, how "
        "many times faster fused is. Features have width 256; rows are normalised inside every contestant; gradients "
        "go to the queries (losses), to the maps (sample, tap), to maps and networks (path). GF/s: of the one "
        "(fwd) or two matrix products a loss needs. Peak memory: allocations minus releases during one call, on a CPU "
        "of torch's allocator, which does not see the 1 MiB or so of scratch of each thread of the C++ operators.",
        "",
        f"## Losses ({len(summary['losses'])})",
        "",
    ]
    for loss in summary["losses"]:
        noisy = ", noisy" if loss["noisy"] else ""
        lines.append(f"* loss {loss['ratio']:.2f}x against {loss['baseline']}: {loss['row']}{noisy}")
    lines += [] if summary["losses"] else ["None."]
    lines += ["", f"## Failed the correctness gate or raised ({len(summary['failures'])})", ""]
    lines += [f"* **{f['status']}** {f['provider']}: {f['row']}: {f['reason']}" for f in summary["failures"]]
    lines += [] if summary["failures"] else ["None."]
    for operator in (n for n in NAMES if any(row["operator"] == n for row in result["rows"])):
        lines += ["", f"## {operator}", "", *_table([r for r in result["rows"] if r["operator"] == operator])]
    lines += ["", "![speed-ups](contrastive.png)", ""]
    lines += ["![memory](contrastive_memory.png)", ""] if result["memory"] else []
    return "\n".join(lines)


def _table(rows: Sequence[Json]) -> list[str]:
    names = [n for n in ABOUT if n != FUSED and any(n in row["providers"] for row in rows)]
    heads = ["case", "mode", "fused", "GF/s", *names, "peak MiB, fused / eager", "compile s", "rounds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        providers = row["providers"]
        peaks = [providers.get(n, {}).get("peak_bytes") for n in (FUSED, EAGER)]
        seconds = [f"{r['compile_seconds']:.0f}" for r in providers.values() if "compile_seconds" in r]
        gflops = providers[FUSED].get("gflops")
        cells = [
            row["label"].removeprefix(f"{row['operator']} "),
            row["mode"],
            _cell(providers[FUSED]),
            f"{gflops:.0f}" if gflops else "–",
            *(_cell(providers.get(n)) for n in names),
            " / ".join("–" if p is None else f"{p / 2**20:.3g}" for p in peaks),
            ", ".join(seconds) or "–",
            f"{row['rounds']}, {row['rounds_disturbed']} disturbed",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(r: Json | None) -> str:
    if r is None:
        return "–"
    if "median_ms" not in r:
        return f"**{r['status']}**"
    text = f"{r['median_ms']:.3g} ({r['p20_ms']:.3g}–{r['p80_ms']:.3g})"
    if "fused_speedup" not in r:
        return text
    return f"{text} **loss {r['fused_speedup']:.2f}x**" if r["loss"] else f"{text} {r['fused_speedup']:.2f}x"


def print_summary(result: Json) -> None:
    summary = result["summary"]
    print(f"{result['kind']}, contrastive, {len(result['rows'])} rows in {result['seconds']:.0f} s")
    print("fused is so many times faster than (geometric mean, min to max):")
    for group, by_name in summary["speedups"].items():
        parts = [f"{n} {r['geomean']:.2f}x ({r['min']:.2f} to {r['max']:.2f})" for n, r in by_name.items()]
        print(f"  {group}: " + ", ".join(parts))
    for loss in summary["losses"]:
        print(f"  loss {loss['ratio']:.2f}x against {loss['baseline']}: {loss['row']}")
    for f in summary["failures"]:
        print(f"  {f['status']} {f['provider']}: {f['row']}: {f['reason']}")


def write(result: Json, folder: Path, provenance: Sequence[str]) -> list[Path]:
    """contrastive.json, .md and .png, and with banks measured contrastive_memory.png, in `folder`."""
    files = {
        "contrastive.json": json.dumps(result, indent=1).encode(),
        "contrastive.md": markdown(result, provenance).encode(),
        "contrastive.png": plot.speedups(result),
    }
    if result["memory"]:
        files["contrastive_memory.png"] = plot.memory(result)
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]


def memory_curve(device: torch.device, full: bool) -> list[Json]:
    """Peak memory of one forward and backward beyond the inputs, against the size of the bank; 4 x 256 queries."""
    points = []
    for bank in (1024, 4096, 16384, 65536) if full else (1024, 4096, 16384):
        case = Case("patch_nce_bank", 4, 256, torch.float32, bank)
        given = work(case, device)
        for name in (EAGER, FUSED):
            mine = given.copied()
            function = mine.contestants[name]
            peak = peak_bytes(lambda mine=mine, function=function: mine.call(function, True), True, device)
            points.append({"bank": bank, "provider": name, "peak_bytes": peak, "logits_bytes": 4 * 256 * bank * 4})
    return points
