"""Pictures of a run for people to look at: grids of images, and the losses over the steps."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from i2i.data.grid import draw_grid
from i2i.files import replacing


def save_grid(path: Path, titles: Sequence[str], rows: Sequence[Sequence[Tensor]]) -> None:
    """Write `draw_grid` as a PNG."""
    with replacing(path) as temporary:
        draw_grid(titles, rows).save(temporary, format="PNG")


def plot_losses(table: Path, path: Path) -> None:
    """The columns of losses.csv over steps, each as its mean over at most 500 stretches of the run."""
    from matplotlib.figure import Figure  # takes a second to import, and is needed here only

    with open(table, newline="") as file:
        names, *rows = csv.reader(file)
    values = np.array(rows, dtype=float)
    pieces = np.array_split(values, min(len(values), 500))
    means = np.array([piece.mean(axis=0) for piece in pieces])
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for column, name in enumerate(names[1:], 1):
        axes.plot(means[:, 0], means[:, column], label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="symlog" if means[:, 1:].max() > 20 else "linear")
    axes.legend(ncols=4, fontsize="small")
    axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
