"""The picture of a proof: operators against the speed of a copy, and training steps."""

from __future__ import annotations

from typing import Any

from benchmarks.engine.plot import png, where
from benchmarks.engine.work import FUSED, INTO, MODES, Json
from benchmarks.systems.stock import OURS

FUSED_COLOUR, OTHER = "#0072B2", "#999999"  # of Okabe and Ito


def milliseconds(seconds: float) -> str:
    """Three digits, and all of a whole number."""
    return f"{seconds * 1e3:.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def draw(result: Json) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    operators = [
        row
        for row in result["parts"].get("operators", {}).get("rows", [])
        if "percent_of_copy" in row["providers"].get(FUSED, {})
    ]
    systems = result["parts"].get("steps", {}).get("systems", {})
    bars = [(system, row) for system, rows in systems.items() for row in rows if "median_s" in row]
    labels = list(dict.fromkeys(row["label"] for row in operators))
    height = 1.8 + 0.2 * max(len(labels), 1.7 * len(bars), 4)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(16, height), layout="constrained")
    figure.suptitle(f"{where(result)}: {result['kind']}")
    _operators(left, operators, labels)
    _steps(right, bars)
    return png(figure)


def _operators(axis: Any, rows: list[Json], labels: list[str]) -> None:
    """A line for each case: fused forward and with the backward, and the best of the others."""
    for mode, marker in zip(MODES, "os"):
        for name, colour, of in ((f"best other, {mode}", OTHER, _others), (f"fused, {mode}", FUSED_COLOUR, _fused)):
            points = [(speed, labels.index(row["label"])) for row in rows if row["mode"] == mode and (speed := of(row))]
            if points:
                fill = colour if mode == MODES[True] else "white"
                axis.plot(*zip(*points), marker, mfc=fill, mec=colour, ms=6, label=name, linestyle="none")
    axis.set_title("Percent of the speed of a copy that moves the necessary bytes", fontsize=10, loc="left")
    if not labels:
        axis.set_axis_off()
        axis.text(0, 0.5, "no operator was measured")
        return
    axis.axvline(100, color="black", linewidth=1)
    axis.axvline(85, color="black", linewidth=0.6, linestyle="--")
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False, fontsize=8)


def _fused(row: Json) -> float | None:
    return row["providers"][FUSED].get("percent_of_copy")


def _others(row: Json) -> float | None:
    speeds = [
        r["percent_of_copy"] for n, r in row["providers"].items() if n not in (FUSED, INTO) and "percent_of_copy" in r
    ]
    return max(speeds, default=None)


def _steps(axis: Any, bars: list[tuple[str, Json]]) -> None:
    axis.set_title("Milliseconds per training step; peak memory", fontsize=10, loc="left")
    if not bars:
        axis.set_axis_off()
        axis.text(0, 0.5, "no step was measured")
        return
    names = [f"{system}: {row['name']}" for system, row in bars]
    times = [row["median_s"] * 1e3 for _, row in bars]
    colours = [FUSED_COLOUR if row["name"].startswith(OURS) else OTHER for _, row in bars]
    axis.barh(range(len(bars)), times, color=colours)
    axis.set_yticks(range(len(bars)), names, fontsize=8)
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.margins(x=0.25)
    for place, (_, row) in enumerate(bars):
        memory = f", {row['peak_bytes'] / 2**30:.1f} GiB" if "peak_bytes" in row else ""
        axis.text(times[place], place, f" {milliseconds(row['median_s'])}{memory}", va="center", fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
