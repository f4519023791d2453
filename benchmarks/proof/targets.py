"""What is to hold on a GPU, target by target: a figure from the parts, a limit, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.engine.work import EAGER, FUSED, MODES, Json
from benchmarks.proof import launches, operators, training
from benchmarks.proof.part import OK
from benchmarks.proof.picture import milliseconds
from benchmarks.systems.stock import GRAPHS, OURS, PUBLISHED

PASSED, MISSED, NOT_MEASURED = "passed", "failed", "not measured"
LARGE = 64e6  # bytes of a map, from which a norm is held to the speed of a copy
ITEMSIZE = {"float32": 4, "bfloat16": 2}

Figure = tuple[float, str]  # and what it is of


class Target(NamedTuple):
    """figure(the part's result): None where what it needs is not in there."""

    name: str
    part: str
    limit: float
    unit: str
    at_least: bool
    gpu: bool  # a figure of a CPU says nothing about it
    figure: Callable[[Json], Figure | None]

    @property
    def wanted(self) -> str:
        if self.limit == 0 and not self.at_least:
            return "none"
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}{self.unit}"


def checks(parts: Mapping[str, Json], device: str) -> list[Json]:
    """All targets, with "figure", "of", "status" and, where nothing was measured, "reason"."""
    return [{"target": t.name, "part": t.part, "wanted": t.wanted, **_check(t, parts, device)} for t in TARGETS]


def _check(target: Target, parts: Mapping[str, Json], device: str) -> Json:
    nothing = {"figure": None, "of": "", "status": NOT_MEASURED}
    if target.gpu and device != "cuda":
        return nothing | {"reason": "needs a GPU"}
    part = parts.get(target.part)
    if part is None:
        return nothing | {"reason": f"the part {target.part} was not asked for, or not reached"}
    found = target.figure(part)
    if found is None:
        why = f"{part['status']}: {part['reason']}" if part["status"] != OK else "nothing of it was measured"
        return nothing | {"reason": f"the part {target.part}: {why}"}
    figure, of = found
    holds = figure >= target.limit if target.at_least else figure <= target.limit
    return {
        "figure": figure,
        "of": of,
        "text": f"{figure:.3g}{target.unit}",
        "status": PASSED if holds else MISSED,
        "reason": "" if part["status"] == OK else f"of what there was time for ({part['status']})",
    }


# ---- figures ---------------------------------------------------------------------------------------------------------


def tests_failed(runs: str) -> Callable[[Json], Figure | None]:
    def figure(part: Json) -> Figure | None:
        mine = part.get("runs", {}).get(runs)
        if mine is None or not mine["passed"] + mine["failed"]:
            return None
        return mine["failed"], f"of {mine['passed'] + mine['failed']} tests, {mine['skipped']} more skipped"

    return figure


def sanitizer_errors(tool: str) -> Callable[[Json], Figure | None]:
    def figure(part: Json) -> Figure | None:
        mine = part.get("tools", {}).get(tool)
        return None if mine is None or mine["errors"] is None else (mine["errors"], f"in {mine['calls']}")

    return figure


def wrong_results(part: Json) -> Figure | None:
    rows = part.get("rows", [])
    return (sum(not operators.fused_is_right(row) for row in rows), f"of {len(rows)} rows") if rows else None


def norms(part: Json, *modes: str) -> list[Json]:
    return [row for row in part.get("rows", []) if row["suite"] == "ops" and row["mode"] in modes]


def copy_speed(mode: str) -> Callable[[Json], Figure | None]:
    def figure(part: Json) -> Figure | None:
        large = [row for row in norms(part, mode) if math.prod(row["shape"]) * ITEMSIZE[row["dtype"]] > LARGE]
        speeds = {row["label"]: row["providers"].get(FUSED, {}).get("percent_of_copy") for row in large}
        speeds = {label: speed for label, speed in speeds.items() if speed}
        if not speeds:
            return None
        worst = min(speeds, key=lambda label: speeds[label])
        return speeds[worst], f"{worst}, the slowest of {len(speeds)}"

    return figure


def norm_losses(part: Json) -> Figure | None:
    ratios = [
        (result["fused_speedup"], f"{row['label']} {row['mode']} against {name}")
        for row in norms(part, *MODES)
        for name, result in row["providers"].items()
        if "fused_speedup" in result
    ]
    if not ratios:
        return None
    losses = [ratio for ratio in ratios if ratio[0] < 1]
    worst = f", the worst {min(losses)[0]:.2f}x: {min(losses)[1]}" if losses else ""
    return len(losses), f"of {len(ratios)} comparisons{worst}"


def nce_speed(part: Json) -> Figure | None:
    rows = [r for r in part.get("rows", []) if r["operator"] == "patch_nce_layers" and r["mode"] == MODES[True]]
    found = [(r["providers"].get(EAGER, {}).get("fused_speedup"), r["label"]) for r in rows]
    found = [each for each in found if each[0]]
    return min(found) if found else None


def nce_launches(part: Json) -> Figure | None:
    for row in part.get("calls", []):
        if (row["name"], row["what"]) == (launches.FIVE, launches.BOTH) and "launches" in row:
            return row["launches"], ", ".join(row["kernels"])
    return None


def cut(part: Json) -> dict[str, Json]:
    """CUT's rows that were timed, by name."""
    return {row["name"]: row for row in part.get("systems", {}).get("CUT", []) if "median_s" in row}


def times_faster(baseline: str) -> Callable[[Json], Figure | None]:
    def figure(part: Json) -> Figure | None:
        rows = cut(part)
        if not {OURS, baseline} <= rows.keys():
            return None
        ours, other = rows[OURS]["median_s"], rows[baseline]["median_s"]
        return other / ours, f"{milliseconds(other)} ms against {milliseconds(ours)}"

    return figure


def of_convolutions(part: Json) -> Figure | None:
    ours = cut(part).get(OURS, {})
    if not ours.get("convolutions_s"):
        return None
    step, inside = ours["median_s"], ours["convolutions_s"]
    return step / inside, f"a step of {milliseconds(step)} ms, {milliseconds(inside)} of convolutions"


def step_launches(part: Json) -> Figure | None:
    ours = cut(part).get(OURS, {})
    return (ours["launches"], "kernels, copies and fills of a step") if "launches" in ours else None


def unrecorded(part: Json) -> Figure | None:
    ours = {
        system: row["graphs"]
        for system, rows in part.get("systems", {}).items()
        for row in rows
        if row["name"] == OURS and "graphs" in row
    }
    if not ours:
        return None
    without = [system for system, lines in ours.items() if not any("recorded, " in line for line in lines)]
    return len(without), ", ".join(without) or f"of {', '.join(ours)}"


def rise(part: Json) -> Figure | None:
    runs = part.get("runs", [])
    if not runs:
        return None
    worst = min(runs, key=lambda run: run["rise"])
    return worst[
        "rise"
    ], f"from {worst['start']:.1f} to {worst['end']:.1f} in {worst['steps']} steps, {worst['precision']}"


FORWARD, BOTH = MODES
TARGETS: Sequence[Target] = (
    Target("tests on the device fail, CUDA", "tests", 0, "", False, True, tests_failed("CUDA")),
    Target("tests on the device fail, Triton", "tests", 0, "", False, True, tests_failed("Triton")),
    Target("errors of memcheck", "sanitizer", 0, "", False, True, sanitizer_errors("memcheck")),
    Target("errors of racecheck", "sanitizer", 0, "", False, True, sanitizer_errors("racecheck")),
    Target("fused operators wrong, or not to be measured", "operators", 0, "", False, False, wrong_results),
    Target("norms above 64 MB, forward, of a copy's speed", "operators", 85, " %", True, True, copy_speed(FORWARD)),
    Target("norms above 64 MB, with backward, of a copy's speed", "operators", 85, " %", True, True, copy_speed(BOTH)),
    Target("norms slower than any other code", "operators", 0, "", False, True, norm_losses),
    Target("PatchNCE of five layers, with backward, faster than eager", "operators", 10, "x", True, True, nce_speed),
    Target("PatchNCE of five layers, with backward, launches", "launches", 3, "", False, True, nce_launches),
    Target("CUT step faster than the published form", "steps", 3, "x", True, True, times_faster(PUBLISHED)),
    Target("CUT step faster than torch.compile with CUDA graphs", "steps", 1.3, "x", True, True, times_faster(GRAPHS)),
    Target("CUT step, of its convolutions' time", "steps", 1.5, "x", False, True, of_convolutions),
    Target("CUT step, launches", "steps", 700, "", False, True, step_launches),
    Target("steps that are not recorded as CUDA graphs", "steps", 0, "", False, True, unrecorded),
    Target("held-out score of the training run rises", "training", training.MARGIN, " dB", True, False, rise),
)
