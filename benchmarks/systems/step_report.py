"""Rows of the whole-step table to text, Markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine.plot import png, where
from benchmarks.engine.report import provenance, write_files
from benchmarks.engine.work import Json
from benchmarks.systems.stock import OURS, PUBLISHED
from benchmarks.systems.stock_cut import CONTESTANTS


def relate(rows: Sequence[Json]) -> None:
    """Adds how many times faster ours is than each, and the peak memory relative to the published form's."""
    by_name = {row["name"]: row for row in rows}
    ours, published = by_name[OURS].get("median_s"), by_name[PUBLISHED].get("peak_bytes")
    for row in rows:
        if ours and "median_s" in row and row["name"] != OURS:
            row["ours_speedup"] = row["median_s"] / ours
        if published and "peak_bytes" in row:
            row["memory_of_published"] = row["peak_bytes"] / published


def _cells(row: Json) -> list[str]:
    if "median_s" not in row:
        return [f"**{row['status']}**" if row["status"] != "ok" else "–", *["–"] * 5]
    failed = "" if row["status"] == "ok" else f" **{row['status']}**"
    ratio = f"{row['ours_speedup']:.2f}x" if "ours_speedup" in row else "–"
    if row.get("ours_speedup", 1) < 1:
        ratio = f"**loss {ratio}**"
    memory = f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else "–"
    share = f"{row['memory_of_published']:.2f}" if "memory_of_published" in row else "–"
    outside = f"{100 * row['outside_convolutions']:.0f} %" if "outside_convolutions" in row else "–"
    return [seconds_cell(row) + failed, ratio, memory, share, outside, f"{row['first_step_s']:.1f}"]


def seconds_cell(row: Json) -> str:
    return f"{row['median_s']:.3g} ({row['p20_s']:.3g}–{row['p80_s']:.3g})"


HEAD = [
    "contestant",
    "s per step",
    "ours is faster",
    "peak GiB",
    "of published",
    "outside convolutions",
    "first step s",
]


def _table(rows: Sequence[Json]) -> list[str]:
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return lines + ["| " + " | ".join([row["name"], *_cells(row)]) + " |" for row in rows]


def text(rows: Sequence[Json]) -> str:
    return "\n".join([*_table(rows), *(f"{r['status']} {r['name']}: {r['reason']}" for r in rows if r["reason"])])


def markdown(result: Json) -> str:
    rows = result["rows"]
    count = max((len(row["samples_s"]) for row in rows), default=0)
    lines = [f"# CUT training step, {result['size']} x {result['size']}, batch 1: {result['kind']}", ""]
    lines += [*provenance(result), "", *(f"* **{row['name']}**: {CONTESTANTS[row['name']].about}" for row in rows), ""]
    lines += [
        f"Median (20th to 80th percentile) of {count} interleaved steps, each contestant in its own process. Peak: of "
        "the whole process, interpreter and libraries included (on a GPU: of torch's allocator). Outside "
        "convolutions: part of a profiled step. First step: with everything that is built or compiled in it. Before "
        "the timing, losses and gradients of the first step are compared with the published form's. Eager channels "
        "last is no contestant: torch 2.13's instance norm has a wrong gradient there at batch 1, on CPUs."
        + format_sentence(result),
        "",
        *_table(rows),
        "",
    ]
    lines += [f"* **{row['status']}** {row['name']}: {row['reason']}" for row in rows if row["reason"]]
    lines += distances(PUBLISHED, [(row["name"], row) for row in rows if row["name"] != PUBLISHED])
    return "\n".join([*lines, "", "![steps](step.png)", ""])


def format_sentence(result: Json) -> str:
    """In which memory format ours and careful Python ran; of results from before it was noted, nothing."""
    forms = [f"{form} in {precision}" for precision, form in result.get("memory_formats", {}).items()]
    return (
        f" Maps of ours and of careful Python: {', '.join(forms)}, where convolutions are faster so." if forms else ""
    )


def distances(baseline: str, rows: Sequence[tuple[str, Json]]) -> list[str]:
    """Of the gradients of (label, row)s, those that were compared."""
    found = [(label, row["gradient_distance"]) for label, row in rows if "gradient_distance" in row]
    if not found:
        return []
    head = f"Relative distance of the first step's gradients from those of the {baseline}, in the 2-norm:"
    return [head, "", *(f"* {label}: " + ", ".join(f"{n} {d:.2g}" for n, d in by.items()) for label, by in found)]


def picture(result: Json) -> bytes:
    return bars(f"CUT training step, {result['size']} x {result['size']}, batch 1", result, result["rows"], OURS)


def bars(title: str, result: Json, rows: Sequence[Json], ours: str) -> bytes:
    """Seconds and peak memory, a bar for each row that was timed; those whose name begins with `ours` in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if "median_s" in row][::-1]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 1.6 + 0.4 * len(rows)), sharey=True, layout="constrained")
    figure.suptitle(f"{title}: {where(result)}")
    colours = ["#0072B2" if row["name"].startswith(ours) else "#999999" for row in rows]
    names = [row["name"] for row in rows]
    seconds = [row["median_s"] for row in rows]
    spreads = [[row["median_s"] - row["p20_s"] for row in rows], [row["p80_s"] - row["median_s"] for row in rows]]
    axes[0].barh(names, seconds, xerr=spreads, color=colours)
    axes[0].set_xlabel("seconds per step")
    memory = [row.get("peak_bytes", 0) / 2**30 for row in rows]
    axes[1].barh(names, memory, color=colours)
    axes[1].set_xlabel("peak memory of the process, GiB")
    for axis, values in zip(axes, (seconds, memory)):
        axis.margins(x=0.12)
        for place, value in enumerate(values):
            axis.text(value, place, f"  {value:.2f}", va="center", fontsize=9)
    return png(figure)


def write(result: Json, folder: Path) -> list[Path]:
    """step.json, .md and .png in `folder`."""
    return write_files(folder, "step", result, markdown(result), {"": picture(result)})
