"""A suite's picture: how many times faster fused is than each baseline."""

from __future__ import annotations

import io
from typing import Any

from benchmarks.engine.suite import Suite, row_label
from benchmarks.engine.work import FUSED, INTO, MODES, Json

# Okabe and Ito's colours, told apart by most colour-blind readers; red is left for losses
_COLOURS = ("#0072B2", "#999999", "#E69F00", "#009E73", "#56B4E9", "#CC79A7")
_LOSS = "#C00000"


def png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def where(result: Json) -> str:
    machine = result["machine"]
    return machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} threads"


def speedups(suite: Suite, result: Json) -> bytes:
    """Forward and backward: a panel per operator, a row of dots per case, one dot per baseline, right of 1 where fused
    is faster. Forward rows are in the tables."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    colours = dict(zip((n for n in suite.about if n not in (FUSED, INTO)), _COLOURS))
    rows = [row for row in result["rows"] if row["mode"] == MODES[1]]
    rows = [row for row in rows if any("fused_speedup" in r for r in row["providers"].values())]
    title = f"Times faster, {MODES[1]}, fused against stock torch {result['versions']['torch']}: {where(result)}"
    if not rows:  # a run interrupted early
        figure = pyplot.figure(figsize=(11, 1.6))
        figure.suptitle(f"{title}\nnothing measured")
        return png(figure)
    names = [n for n in suite.operators if any(row["operator"] == n for row in rows)]
    counts = [sum(row["operator"] == n for row in rows) for n in names]
    figure, axes = pyplot.subplots(
        len(names),
        1,
        figsize=(11, 1.6 + 0.28 * sum(counts) + 0.5 * len(names)),
        squeeze=False,
        sharex=True,
        layout="constrained",
        gridspec_kw={"height_ratios": counts},
    )
    for axis, name in zip(axes[:, 0], names):
        mine = [row for row in rows if row["operator"] == name]
        labels = [row_label(row).removeprefix(f"{name} ") for row in mine]
        for y, row in enumerate(mine):
            for baseline, r in row["providers"].items():
                if "fused_speedup" in r:
                    lost = r["loss"]
                    colour = colours[baseline]
                    axis.plot(
                        r["fused_speedup"], y, "X" if lost else "o", ms=8, mfc=colour, mec=_LOSS if lost else colour
                    )
        axis.set_yticks(range(len(mine)), labels, fontsize=8)
        axis.set_ylim(len(mine) - 0.5, -0.5)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
        axis.tick_params(labelbottom=True, labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    handles: list[Any] = [
        Line2D([], [], marker="o", color="none", mfc=colour, mec=colour, label=f"than {name}")
        for name, colour in colours.items()
        if any(name in row["providers"] for row in rows)
    ]
    handles.append(Line2D([], [], marker="X", color="none", mfc="white", mec=_LOSS, label="loss"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, title=title)
    return png(figure)
