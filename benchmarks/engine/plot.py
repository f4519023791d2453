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
    """A row of panels per operator, forward and with the backward; a line of dots per case, one dot per baseline, right
    of 1 where fused is faster. Beside a line: baselines with a wrong result, or none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    colours = dict(zip((n for n in suite.about if n not in (FUSED, INTO)), _COLOURS))
    rows = [row for row in result["rows"] if any("fused_speedup" in r for r in row["providers"].values())]
    title = f"Times faster, fused against stock torch {result['versions']['torch']}: {where(result)}"
    if not rows:  # a run interrupted early
        figure = pyplot.figure(figsize=(11, 1.6))
        figure.suptitle(f"{title}\nnothing measured")
        return png(figure)
    cases = {n: list(dict.fromkeys(row_label(row) for row in rows if row["operator"] == n)) for n in suite.operators}
    cases = {name: labels for name, labels in cases.items() if labels}
    counts = [len(labels) for labels in cases.values()]
    figure, axes = pyplot.subplots(
        len(cases),
        2,
        figsize=(14, 1.6 + 0.28 * sum(counts) + 0.5 * len(cases)),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
        gridspec_kw={"height_ratios": counts},
    )
    for panels, (name, labels) in zip(axes, cases.items()):
        for axis, mode in zip(panels, MODES):
            mine = [row for row in rows if row["operator"] == name and row["mode"] == mode]
            for row in mine:
                _dots(axis, labels.index(row_label(row)), row, colours)
            axis.set_title(f"{name}, {mode}" if mine else f"{name}: no {mode}", loc="left", fontsize=10, weight="bold")
            _dress(axis)
        panels[0].set_yticks(range(len(labels)), [label.removeprefix(f"{name} ") for label in labels], fontsize=8)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
    handles: list[Any] = [
        Line2D([], [], marker="o", color="none", mfc=colour, mec=colour, label=f"than {name}")
        for name, colour in colours.items()
        if any(name in row["providers"] for row in rows)
    ]
    handles.append(Line2D([], [], marker="X", color="none", mfc="white", mec=_LOSS, label="loss"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, title=title)
    return png(figure)


def _dots(axis: Any, y: int, row: Json, colours: dict[str, str]) -> None:
    for baseline, r in row["providers"].items():
        if "fused_speedup" in r:
            colour, lost = colours[baseline], r["loss"]
            axis.plot(r["fused_speedup"], y, "X" if lost else "o", ms=8, mfc=colour, mec=_LOSS if lost else colour)
    failed = [f"{name}: {r['status']}" for name, r in row["providers"].items() if r["status"] in ("FAIL", "error")]
    axis.annotate(
        "\n".join(failed),
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=_LOSS,
        annotation_clip=False,
    )


def _dress(axis: Any) -> None:
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    axis.tick_params(labelbottom=True, labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
