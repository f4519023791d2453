"""Runs of the trainer that take a second: their options, their losses, their errors."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from i2i.__main__ import main
from i2i.methods.cut import CUTConfig

ROOT = Path(__file__).parents[2]
TINY = CUTConfig.SAMPLE | {
    **{"crop_size": 32, "generator": "resnet_5blocks", "ngf": 4, "ndf": 4, "num_patches": 16},
    **{"save_every": 4, "sample_every": 4},
}


def arguments(**options) -> list[str]:
    """Command line of a tiny run."""
    return ["train"] + [f"{name}={value}" for name, value in (TINY | {"device": "cpu"} | options).items()]


def losses(folder: Path) -> list[list[str]]:
    with open(folder / "losses.csv", newline="") as file:
        return list(csv.reader(file))


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def fails(capsys, *argv: object) -> str:
    """Run the command line, which must end with code 2 and one line. Returns that line."""
    try:
        code = main([str(word) for word in argv])
    except SystemExit as stop:  # argparse
        code = stop.code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("skipped")]
    assert code == 2 and lines and "Traceback" not in "".join(lines)
    return lines[-1]
