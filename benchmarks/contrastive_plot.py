"""Pictures of the contrastive results: times faster than each baseline, and memory against the size of the bank."""

from __future__ import annotations

import io
from typing import Any

from benchmarks.cases import MODES
from benchmarks.contrastive_cases import ABOUT, EAGER, FUSED, NAMES

Json = dict[str, Any]

# Okabe and Ito's colours, as in plot.py; red is left for losses
_COLOURS = dict(zip((n for n in ABOUT if n != FUSED), ("#0072B2", "#999999", "#E69F00", "#009E73")))
_LOSS = "#C00000"


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def _where(result: Json) -> str:
    machine = result["machine"]
    return machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} threads"


def speedups(result: Json) -> bytes:
    """Forward and backward: a panel per operator, a row of dots per case, one dot per baseline, right of 1 where fused
    is faster. Forward rows are in the tables."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    rows = [row for row in result["rows"] if row["mode"] == MODES[1]]
    rows = [row for row in rows if any("fused_speedup" in r for r in row["providers"].values())]
    title = f"Times faster, {MODES[1]}, fused against stock torch {result['versions']['torch']}: {_where(result)}"
    if not rows:  # a run interrupted early
        figure = pyplot.figure(figsize=(11, 1.6))
        figure.suptitle(f"{title}\nnothing measured")
        return _png(figure)
    names = [n for n in NAMES if any(row["operator"] == n for row in rows)]
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
        labels = [row["label"].removeprefix(f"{name} ") for row in mine]
        for y, row in enumerate(mine):
            for baseline, r in row["providers"].items():
                if "fused_speedup" in r:
                    lost = r["loss"]
                    colour = _COLOURS[baseline]
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
        for name, colour in _COLOURS.items()
        if any(name in row["providers"] for row in rows)
    ]
    handles.append(Line2D([], [], marker="X", color="none", mfc="white", mec=_LOSS, label="loss"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, title=title)
    return _png(figure)


def memory(result: Json) -> bytes:
    """Memory of one forward and backward beyond the inputs, against the size of the bank."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    points = result["memory"]
    for name, colour, text in ((EAGER, "#0072B2", "stock torch (MoCo's form)"), (FUSED, "#D55E00", "fused")):
        mine = [p for p in points if p["provider"] == name]
        axis.plot([p["bank"] for p in mine], [p["peak_bytes"] / 2**20 for p in mine], "o-", color=colour, label=text)
        for p in mine:
            axis.annotate(
                f"{p['peak_bytes'] / 2**20:.3g}",
                (p["bank"], p["peak_bytes"] / 2**20),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=colour,
            )
    banks = sorted({p["bank"] for p in points})
    logits = {p["bank"]: p["logits_bytes"] / 2**20 for p in points}
    axis.plot(banks, [logits[b] for b in banks], "--", color="#999999", label="one matrix of logits")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(banks, [f"{b:,}" for b in banks])
    axis.minorticks_off()
    axis.set_xlabel("negatives in the bank, 256 wide")
    axis.set_ylabel("MiB beyond the inputs")
    axis.set_title(f"4 x 256 queries, float32, {MODES[1]}: peak memory of the loss ({_where(result)})", fontsize=10)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.legend(frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return _png(figure)
