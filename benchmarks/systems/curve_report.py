"""Points of the cost curves to text, Markdown, JSON and a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.plot import png, where
from benchmarks.engine.report import provenance, write_files
from benchmarks.engine.work import Json
from benchmarks.systems.step_report import seconds_cell
from benchmarks.systems.stock import CAREFUL, OURS, PUBLISHED
from benchmarks.systems.stock_cut import CONTESTANTS

NAMES = (OURS, CAREFUL, PUBLISHED)
COLOURS = {OURS: "#0072B2", CAREFUL: "#E69F00", PUBLISHED: "#999999"}
TITLES = {
    "side": ("side of the images", "side of the images, pixels"),
    "batch": ("images of a batch", "images of a batch"),
    "patches": ("patches of an image", "patches of an image, in each of five layers"),
    "bank": ("rows of the bank", "rows of the bank, for each layer and source"),
}
BANK = (
    "CUT's repository has no bank of negatives. Along that axis all contestants have the one that the paper compares "
    "with: MoCo's queue and encoder of averaged weights, whose rows are the only negatives. Careful Python and the "
    "published form take MoCo's published form of it: one cross entropy of the positive beside the products with the "
    "whole queue."
)
REST = "Along each axis the rest is as published: 256 x 256 pixels, batch 1, 256 patches, negatives of the same image."
ABOUT = {
    OURS: "i2i's step on the fused operators",
    CAREFUL: CONTESTANTS[CAREFUL].about.replace(", bfloat16 autocast", ""),
    PUBLISHED: CONTESTANTS[PUBLISHED].about,
}


def relate(by_name: Mapping[str, Json]) -> None:
    """Adds how many times faster ours is than each of the others, and whether that is a loss."""
    ours = by_name.get(OURS, {}).get("median_s")
    for name, row in by_name.items():
        if name != OURS and ours and "median_s" in row:
            row["ours_speedup"] = row["median_s"] / ours
            row["loss"] = row["ours_speedup"] < 1


def _seconds(row: Json) -> str:
    if row.get("status", "ok") != "ok":
        return f"**{row['status']}**"
    if "median_s" not in row:
        return "–"
    if "ours_speedup" not in row:
        return seconds_cell(row)
    ratio = f"{row['ours_speedup']:.2f}x"
    return f"{seconds_cell(row)} {f'**loss {ratio}**' if row['loss'] else ratio}"


def _peaks(by_name: Mapping[str, Json]) -> list[str]:
    found = [by_name.get(name, {}).get("peak_bytes") for name in NAMES]
    cells = " / ".join("–" if size is None else f"{size / 2**30:.2f}" for size in found)
    return [cells, f"{found[0] / found[2]:.2f}" if found[0] and found[2] else "–"]


def _cells(row: Json) -> list[str]:
    by_name = row["providers"]
    if not by_name:
        return [f"not measured: {row['not_measured']}", *["–"] * 5]
    notes = [] if row["together"] else ["one after the other"]
    notes += [f"compared with {row['baseline']}"] if row["baseline"] != PUBLISHED else []
    notes += [f"**noisy**: others took {row['other_load']:.2f} cores"] if row["noisy"] else []
    count = max(len(r["samples_s"]) for r in by_name.values())
    return [*(_seconds(by_name.get(name, {})) for name in NAMES), *_peaks(by_name), ", ".join([f"{count}", *notes])]


def _on(rows: Sequence[Json], axis: str) -> list[Json]:
    """Those of an axis, in its order."""
    return sorted((row for row in rows if axis in row["axes"]), key=lambda row: row["point"][axis])


def _axes(rows: Sequence[Json]) -> list[str]:
    return [axis for axis in TITLES if _on(rows, axis)]


def _table(rows: Sequence[Json], axis: str) -> list[str]:
    head = [TITLES[axis][0], f"{OURS}, s", *(f"{name}, s; ours is faster" for name in NAMES[1:])]
    head += [f"peak GiB, {' / '.join(NAMES)}", f"of {PUBLISHED}", "turns"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join([str(row["point"][axis]), *_cells(row)]) + " |" for row in _on(rows, axis)]


def _each(rows: Sequence[Json]) -> list[tuple[str, Json]]:
    return [(row["label"], r) for row in rows for r in row["providers"].values()]


def _losses(rows: Sequence[Json]) -> list[str]:
    found = [(label, r) for label, r in _each(rows) if r.get("loss")]
    return [f"{r['ours_speedup']:.2f}x against {r['name']}: {label}" for label, r in found]


def _failures(rows: Sequence[Json]) -> list[str]:
    return [f"**{r['status']}** {r['name']}: {label}: {r['reason']}" for label, r in _each(rows) if r["reason"]]


def text(rows: Sequence[Json]) -> str:
    lines = [line for axis in _axes(rows) for line in (*_table(rows, axis), "")]
    return "\n".join([*lines, *(f"loss {line}" for line in _losses(rows)), *_failures(rows)])


def markdown(result: Json) -> str:
    rows = result["rows"]
    lines = [f"# Cost curves of a CUT step, {result['precision']}: {result['kind']}", "", *provenance(result), ""]
    lines += [f"* **{name}**, {_precision(result, name)}: {about}" for name, about in ABOUT.items()]
    lines += [
        "",
        f"{REST} "
        "Seconds of a step: median (20th to 80th percentile) of so many interleaved turns, each contestant in its own "
        "process; where memory does not hold all of them, one after the other. Peak: of the whole process, interpreter "
        "and libraries included (on a GPU: of torch's allocator). Before the timing, losses and gradients of the first "
        f"step are compared with the {PUBLISHED}'s. Left out is what, as foretold from smaller points, would not end "
        f"within {result['minutes']:g} minutes in all, or not fit the memory that was free.",
        "",
        BANK,
    ]
    for axis in _axes(rows):
        lines += ["", f"## {TITLES[axis][1].capitalize()}", "", *_table(rows, axis)]
    for head, found in (("Losses", _losses(rows)), ("Left out, failed the gate or raised", _failures(rows))):
        lines += ["", f"## {head} ({len(found)})", "", *([f"* {line}" for line in found] or ["None."])]
    lines += ["", *_distances(rows)]
    return "\n".join([*lines, "", f"![curves]({file_name(result)}.png)", ""])


def _precision(result: Json, name: str) -> str:
    return "float32" if name == PUBLISHED else result["precision"]


def _distances(rows: Sequence[Json]) -> list[str]:
    found = {
        name: [d for r in mine if "gradient_distance" in r for d in r["gradient_distance"].values()]
        for name in NAMES
        if name != PUBLISHED and (mine := [row["providers"].get(name, {}) for row in rows])
    }
    worst = ", ".join(f"{name} {max(values):.2g}" for name, values in found.items() if values)
    head = "Largest relative distance of a first step's gradients from those compared with, in the 2-norm"
    return [f"{head}: {worst}."] if worst else []


def picture(result: Json) -> bytes:
    """Seconds above, peak memory below, a column for each axis; open dots are noisy, dotted lines not measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    rows = result["rows"]
    figure, grid = pyplot.subplots(2, len(TITLES), figsize=(15, 8.2), sharex="col", sharey="row", layout="constrained")
    for column, (axis, (_, title)) in enumerate(TITLES.items()):
        mine = _on(rows, axis)
        for panel, key, unit in ((grid[0][column], "median_s", 1), (grid[1][column], "peak_bytes", 2**30)):
            for name in NAMES:
                _line(panel, [row for row in mine if key in row["providers"].get(name, {})], axis, name, key, unit)
            for row in mine:
                if not row["providers"]:
                    panel.axvline(row["point"][axis], color="#C00000", linestyle=":", linewidth=1)
            _dress(panel, [row["point"][axis] for row in mine])
            if any(key in r for row in rows for r in row["providers"].values()):  # a run may have ended before
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
                panel.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
                panel.minorticks_off()
        grid[1][column].set_xlabel(title)
    grid[0][0].set_ylabel("seconds per step")
    grid[1][0].set_ylabel("peak memory, GiB")
    title = f"A CUT training step, {result['precision']}: {where(result)}"
    figure.legend(handles=_legend(result), loc="outside upper center", ncols=5, frameon=False, title=title)
    figure.supxlabel(textwrap.fill(_caption(result), 200), fontsize=8)
    return png(figure)


def _line(panel: Any, rows: Sequence[Json], axis: str, name: str, key: str, unit: float) -> None:
    values = [(row["point"][axis], row["providers"][name][key] / unit) for row in rows]
    panel.plot([x for x, _ in values], [y for _, y in values], color=COLOURS[name], linewidth=1.5)
    for row, (x, y) in zip(rows, values):
        panel.plot(x, y, "o", color=COLOURS[name], ms=5, mfc="white" if row["noisy"] else COLOURS[name])


def _dress(panel: Any, ticks: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.minorticks_off()
    panel.tick_params(labelbottom=True, labelleft=True, labelsize=8)
    panel.grid(color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _legend(result: Json) -> list[Any]:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], marker="o", color=colour, label=f"{name}, {_precision(result, name)}")
        for name, colour in COLOURS.items()
    ]
    handles.append(Line2D([], [], marker="o", color="#555555", mfc="white", label="noisy"))
    handles.append(Line2D([], [], color="#C00000", linestyle=":", label="not measured (time or memory)"))
    return handles


def _caption(result: Json) -> str:
    versions, commit = result["versions"], result["commit"]["hash"]
    ended = " Ended early." if result["interrupted"] else ""
    isa = f", C++ operators at {versions['kernels_isa']}" if versions["kernels_isa"] else ""
    return (
        f"{result['date'][:10]}, {where(result)}; torch {versions['torch']}, triton {versions['triton']}, Python "
        f"{versions['python']}{isa}{f', commit {commit[:12]}' if commit else ''}.{ended} {REST} {BANK}"
    )


def file_name(result: Json) -> str:
    """Of its files, without the ending: curves for each precision can lie in a folder."""
    return "curves" if result["precision"] == "float32" else f"curves_{result['precision']}"


def write(result: Json, folder: Path) -> list[Path]:
    """NAME.json, .md and .png in `folder`."""
    return write_files(folder, file_name(result), result, markdown(result), {"": picture(result)})
