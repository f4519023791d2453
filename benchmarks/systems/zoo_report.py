"""Rows of the table of all methods to text, Markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.engine.report import provenance, summarise_ratios
from benchmarks.ops.norm import FUSED
from benchmarks.systems.step_report import bars, distances, seconds_cell, write_files
from benchmarks.systems.turns import Json

PLAIN = "plain torch"
HEAD = [
    "method",
    "batch",
    "fused, s per step",
    "plain torch, s per step",
    "fused is faster",
    "peak GiB, fused / plain torch",
    "of plain torch",
    "outside convolutions, fused / plain torch",
]


def relate(providers: Mapping[str, Json]) -> None:
    """Adds to the fused row how many times faster it is, whether that is a loss, and its part of the peak memory."""
    fused, plain = providers[FUSED], providers[PLAIN]
    if "median_s" in fused and "median_s" in plain:
        fused["speedup"] = plain["median_s"] / fused["median_s"]
        fused["loss"] = fused["speedup"] < 1
    if "peak_bytes" in fused and "peak_bytes" in plain:
        fused["memory_of_plain"] = fused["peak_bytes"] / plain["peak_bytes"]


def _cells(row: Json) -> list[str]:
    fused, plain = row["providers"][FUSED], row["providers"][PLAIN]
    ratio = f"{fused['speedup']:.2f}x" if "speedup" in fused else "–"
    return [
        row["method"],
        ", ".join("x".join(map(str, shape)) for shape in fused.get("batch", ())) or "–",
        *(seconds_cell(r) if r["status"] == "ok" and "median_s" in r else _status(r) for r in (fused, plain)),
        f"**loss {ratio}**" if fused.get("loss") else ratio,
        " / ".join(f"{r['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in r else "–" for r in (fused, plain)),
        f"{fused['memory_of_plain']:.2f}" if "memory_of_plain" in fused else "–",
        " / ".join(
            f"{100 * r['outside_convolutions']:.0f} %" if "outside_convolutions" in r else "–" for r in (fused, plain)
        ),
    ]


def _status(row: Json) -> str:
    return "–" if row["status"] == "ok" else f"**{row['status']}**"


def _table(rows: Sequence[Json]) -> list[str]:
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return lines + ["| " + " | ".join(_cells(row)) + " |" for row in rows]


def _failures(rows: Sequence[Json]) -> list[str]:
    results = ((row["method"], r) for row in rows for r in row["providers"].values())
    return [f"**{r['status']}** {method}, {r['name']}: {r['reason']}" for method, r in results if r["reason"]]


def _summary(rows: Sequence[Json]) -> str:
    ratios = [row["providers"][FUSED]["speedup"] for row in rows if "speedup" in row["providers"][FUSED]]
    if not ratios:
        return "Nothing was timed on both sides."
    r = summarise_ratios(ratios)
    return (
        f"Fused is {r['geomean']:.2f}x as fast (geometric mean; {r['min']:.2f} to {r['max']:.2f}, {r['rows']} methods)."
    )


def text(rows: Sequence[Json]) -> str:
    return "\n".join([*_table(rows), _summary(rows), *_failures(rows)])


def markdown(result: Json) -> str:
    rows = result["rows"]
    count = max((len(r["samples_s"]) for row in rows for r in row["providers"].values()), default=0)
    lines = [f"# Training steps of all methods, {result['precision']}: {result['kind']}", "", *provenance(result), ""]
    lines += [
        f"* **{FUSED}**: i2i's step on the fused operators",
        f'* **{PLAIN}**: the same step, networks and order of work with `impl="reference"`, the same operators '
        "written in plain torch. Not the published code, nor stock code written for speed: for CUT, "
        "`python -m benchmarks.steps` compares with both.",
        "",
        f"Published defaults, but for what is listed below. Median (20th to 80th percentile) of {count} interleaved "
        "turns, each of the two in its own process. Peak: of the whole process, interpreter and libraries included "
        "(on a GPU: of torch's allocator). Outside convolutions: part of a profiled step. Before the timing, losses "
        "and gradients of the first step are compared with those in plain torch; where their distance is 0, no fused "
        "operator takes part (batch norm is torch's own) and the ratio shows the noise.",
        "",
    ]
    lines += [f"* {row['method']}: {', '.join(notes)}" for row in rows if (notes := _notes(row))]
    losses = [
        (row["method"], row["providers"][FUSED]["speedup"]) for row in rows if row["providers"][FUSED].get("loss")
    ]
    lines += ["", *_table(rows), "", _summary(rows), "", f"## Losses ({len(losses)})", ""]
    lines += [f"* {method}: {ratio:.2f}x" for method, ratio in losses] or ["None."]
    failures = _failures(rows)
    lines += ["", f"## Failed the correctness gate or raised ({len(failures)})", ""]
    lines += [f"* {failure}" for failure in failures] or ["None."]
    lines += ["", *distances(f"steps in {PLAIN}", [(row["method"], row["providers"][FUSED]) for row in rows])]
    return "\n".join([*lines, "", "![steps](zoo.png)", ""])


def _notes(row: Json) -> list[str]:
    turn = [f"mean of {row['turn']} steps, which together update all networks"] if row["turn"] > 1 else []
    return turn + [f"{name} {value}" for name, value in row["changes"].items()]


def picture(result: Json) -> bytes:
    rows = [r | {"name": f"{name}: {row['method']}"} for row in result["rows"] for name, r in row["providers"].items()]
    return bars(f"Training step, {result['precision']}", result, rows, FUSED)


def write(result: Json, folder: Path) -> list[Path]:
    """zoo.json, .md and .png in `folder`."""
    return write_files(folder, "zoo", result, markdown(result), picture(result))
