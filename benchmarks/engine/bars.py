"""One picture of a result: how many times faster fused is, per operator, format and dtype, than every baseline."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.engine.report import BASELINES, FORMATS
from benchmarks.ops.norm_cases import MODES

Json = dict[str, Any]

_GROUP_LABELS = ("float32\nNCHW", "float32\nchannels_last", "bfloat16\nNCHW", "bfloat16\nchannels_last")
# Okabe and Ito's colours, told apart by most colour-blind readers; red is left for losses and failures.
_COLOURS = dict(zip(BASELINES, ("#0072B2", "#56B4E9", "#999999", "#E69F00", "#009E73", "#CC79A7")))
_LOSS = "#C00000"


def picture(result: Json) -> bytes:
    """PNG: a row of panels per operator, a panel per mode; bars are geometric means over shapes, dots single shapes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = [row for row in result["rows"] if row["providers"]]
    operators = list(dict.fromkeys(row["operator"] for row in rows)) or ["nothing measured"]
    figure, axes = pyplot.subplots(
        len(operators), 2, figsize=(15, 1.2 + 2.3 * len(operators)), squeeze=False, sharex=True, layout="constrained"
    )
    names = [name for name in BASELINES if any(name in row["providers"] for row in rows)]
    for i, operator in enumerate(operators):
        for j, mode in enumerate(MODES):
            mine = [row for row in rows if row["operator"] == operator and row["mode"] == mode]
            _panel(axes[i][j], mine, names)
            axes[i][j].set_title(f"{operator}, {mode}", loc="left", fontsize=10, fontweight="bold")
        axes[i][0].set_ylabel("times faster")
    handles: list[Any] = [Patch(color=_COLOURS[name], label=f"than {name}") for name in names]
    handles += [
        Line2D([], [], marker="o", color="none", markerfacecolor="white", markeredgecolor="black", label="one shape"),
        Line2D(
            [], [], marker="X", color="none", markerfacecolor=_LOSS, markeredgecolor="none", markersize=9, label="loss"
        ),
    ]
    legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(4, len(handles)),
        frameon=False,
        fontsize=10,
        title=_title(result),
        title_fontproperties={"size": 13, "weight": "bold"},
    )
    legend.get_title().set_multialignment("center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def _title(result: Json) -> str:
    machine, versions = result["machine"], result["versions"]
    where = machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} threads"
    load = result["other_load"]
    busy = (
        f"\nshared machine: other processes used {load:.1f} cores meanwhile" if load is not None and load > 0.08 else ""
    )
    return f"Fused operators against stock torch {versions['torch']}: {result['kind']} on {where}{busy}"


def _panel(axis: Any, rows: Sequence[Json], names: Sequence[str]) -> None:
    axis.set_yscale("log", base=2)
    ratios_seen = [1.0]
    for g, (dtype, memory_format) in enumerate(FORMATS):
        group = [row for row in rows if (row["dtype"], row["memory_format"]) == (dtype, memory_format)]
        present = [name for name in names if any(name in row["providers"] for row in group)]
        width = 0.84 / max(len(present), 1)
        for k, name in enumerate(present):
            x = g + (k - (len(present) - 1) / 2) * width
            results = [row["providers"][name] for row in group if name in row["providers"]]
            ratios = [r["fused_speedup"] for r in results if "fused_speedup" in r]
            ratios_seen += ratios
            _bar(axis, x, width, ratios, _COLOURS[name])
            for status in sorted({r["status"] for r in results if r["status"] in ("FAIL", "error")}):
                axis.annotate(
                    f"{name}: {status}",
                    (x, 1),
                    xytext=(0, 3),
                    textcoords="offset points",
                    rotation=90,
                    ha="center",
                    va="bottom",
                    fontsize=7.5,
                    color=_LOSS,
                    fontweight="bold",
                    # over a bar, where other shapes of the group passed
                    bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5},
                )
    low, high = min(ratios_seen), max(ratios_seen)
    axis.set_ylim(min(0.5, low / 1.25), max(4.0, high * 1.7))
    axis.axhspan(axis.get_ylim()[0], 1, color=_LOSS, alpha=0.08, zorder=0)
    axis.axhline(1, color="black", linewidth=1)
    exponents = range(math.floor(math.log2(axis.get_ylim()[0])) + 1, math.ceil(math.log2(axis.get_ylim()[1])))
    axis.set_yticks([2.0**e for e in exponents], [f"{2.0**e:g}x" for e in exponents])
    axis.yaxis.minorticks_off()
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlim(-0.5, len(FORMATS) - 0.5)
    axis.set_xticks(range(len(FORMATS)), _GROUP_LABELS)
    axis.tick_params(labelbottom=True, labelsize=8.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _bar(axis: Any, x: float, width: float, ratios: Sequence[float], colour: str) -> None:
    if not ratios:
        return
    mean = statistics.geometric_mean(ratios)
    axis.bar(x, mean - 1, width * 0.92, bottom=1, color=colour, zorder=2)
    axis.annotate(
        f"{mean:.1f}" if mean >= 1.05 else f"{mean:.2f}",
        (x, max(mean, *ratios, 1)),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color=_LOSS if mean < 1 else "black",
        fontweight="bold" if mean < 1 else "normal",
    )
    wins = [r for r in ratios if r >= 1]
    losses = [r for r in ratios if r < 1]
    if len(ratios) > 1:
        axis.plot([x] * len(wins), wins, "o", ms=3, mfc="white", mec="black", mew=0.6, zorder=3)
    axis.plot([x] * len(losses), losses, "X", ms=7, mfc=_LOSS, mec="white", mew=0.5, zorder=4)
