"""The suite of norms at one tiny shape, as it is and with a contestant changed."""

from __future__ import annotations

import torch

from benchmarks.engine import machine, report, suite
from benchmarks.engine.work import FUSED, Contestant, Json
from benchmarks.ops.norm import SUITE, work
from benchmarks.ops.norm_cases import Case, cases

CPU = torch.device("cpu")
TINY = (2, 5, 9, 7)
TINY_3D = (2, 5, 5, 3, 7)
WITHOUT_COMPILE = ["torch.compile"]  # as --skip takes it


def tiny_cases(*names: str) -> list[Case]:
    return cases(full=False, names=names, shapes=[TINY, TINY_3D])


def changed(name: str, change) -> suite.Suite:
    """The suite with a contestant `name`: change(the function of fused)."""

    def altered(case: Case, device: torch.device):
        given = work(case, device)
        function = change(given.contestants[FUSED].function)
        return given._replace(contestants=given.contestants | {name: Contestant(function)})

    return SUITE._replace(work=altered, about=SUITE.about | {name: ""})


def measured(chosen: suite.Suite, *names: str) -> list[Json]:
    return list(suite.run(chosen, tiny_cases(*names), CPU, 2, WITHOUT_COMPILE))


def off_in_one_element(function):
    def run(*tensors):
        (y,) = function(*tensors)
        y = y.clone()
        y[0, 0, 0, 0] += 0.1
        return [y]

    return run


def assembled(chosen: suite.Suite, rows: list[Json]) -> Json:
    """A whole result around given rows."""
    result = machine.Run("benchmarks", CPU).result(rows, interrupted=False, other_load=None)
    return result | {"summary": report.summarise(chosen, rows)}
