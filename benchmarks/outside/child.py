"""What a process of the foreign benchmark drives: a contestant that is timed, or the comparison in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.outside.compare import Comparison
from benchmarks.outside.driven import Driven, Setting, seed
from benchmarks.outside.lines import LINES, Contest
from benchmarks.outside.trainers import TRAINERS

OWN_MEMORY = True  # systems/child.py leaves malloc as it is: a line of ours changes it, the published trainer does not


def build(trainer: str, setting: Setting) -> Driven:
    seed(0)
    return TRAINERS[trainer].build(setting)


def contestant(
    device: str,
    trainer: str,
    checkout: str,
    size: int,
    batch: int,
    threads: int | None,
    contest: list[Any] | None,
    initial: str,
) -> tuple[Driven | Comparison, list[Tensor], int]:
    """What systems/child.py measures: (model, batch, steps at a time). contest: the fields of a Contest; None for the
    comparison. initial: the file with the weights that all begin with; the comparison writes it."""
    if threads is not None:
        torch.set_num_threads(threads)
    setting = Setting(checkout, size, batch, torch.device(device))
    if contest is None:
        return Comparison(lambda: build(trainer, setting), Path(initial)), [], 1
    asked = Contest(*contest)
    driven = build(trainer, setting)
    driven.load(torch.load(initial))
    LINES[asked.line].apply(driven)
    driven.autocast = asked.autocast
    return driven, driven.batch, 1
