"""Whole training steps of three systems, a process for each contestant: as published, eager at its best, torch.compile
with CUDA graphs, ours with and without one."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.engine.progress import Progress
from benchmarks.engine.work import Json
from benchmarks.proof.part import Asked, OutOfTime
from benchmarks.systems.stock import CAREFUL, GRAPHS, OURS, PUBLISHED
from benchmarks.systems.turns import COMMANDS, LATE, Contestant, Turns, scratch

NO_GRAPH, OURS_FLOAT32 = "ours, no graph", "ours, float32"
SYSTEMS = {
    "CUT": "benchmarks.systems.stock_cut",
    "CycleGAN": "benchmarks.systems.stock_cyclegan",
    "MUNIT": "benchmarks.systems.stock_munit",
}


class Variant(NamedTuple):
    """A contestant of the modules in SYSTEMS, with changed settings."""

    name: str
    settings: Mapping[str, Any] = {}
    cuda_only: bool = False


VARIANTS = {
    PUBLISHED: Variant(PUBLISHED),
    CAREFUL: Variant(CAREFUL),
    GRAPHS: Variant(GRAPHS, cuda_only=True),
    OURS: Variant(OURS),
    NO_GRAPH: Variant(OURS, {"cuda_graphs": False}, cuda_only=True),
    OURS_FLOAT32: Variant(OURS_FLOAT32),
}
COMPILED = 0.55  # of the part's time: until then torch.compile has to be ready


def run(asked: Asked, found: Json) -> None:
    tables = {system: contestants(system, asked) for system in asked.sizes["systems"]}
    progress = Progress(sum(map(len, tables.values())) * (asked.sizes["rounds"] + COMMANDS))
    found["size"] = asked.sizes["size"]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        folder = stack.enter_context(scratch())
        systems = {
            system: stack.enter_context(Turns(table, PUBLISHED, asked.device, progress, folder, f"{system} "))
            for system, table in tables.items()
        }
        try:
            # compiling takes longer than all else and many cores: of all systems at once, before anything is timed
            for turns in systems.values():
                if GRAPHS in turns.contestants:
                    turns.start(GRAPHS)
            for i, turns in enumerate(systems.values()):
                begin(turns, began + COMPILED * (asked.until - began), asked.until)
                now = time.monotonic()
                turns.until = now + (asked.until - now) / (len(systems) - i)
                measure(turns, asked.sizes["rounds"])
        finally:
            found["systems"] = {system: list(turns.summary().values()) for system, turns in systems.items()}
    judge(found["systems"])


def contestants(system: str, asked: Asked) -> dict[str, Contestant]:
    module, networks = SYSTEMS[system], asked.sizes["systems"][system]
    known = importlib.import_module(module).CONTESTANTS
    return {
        label: Contestant(
            module,
            {"name": variant.name, "size": asked.sizes["size"], "networks": {**networks, **variant.settings}},
            known[variant.name].precision,
        )
        for label, variant in VARIANTS.items()
        if asked.device.type == "cuda" or not variant.cuda_only
    }


def begin(turns: Turns, compiled: float, until: float) -> None:
    """The first steps of all, at once; what has not compiled at the time `compiled` is given up."""
    for name in turns.contestants:
        if name not in turns.running:
            turns.start(name)
    for name in sorted(turns.contestants, key=lambda name: name == GRAPHS):
        turns.until = compiled if name == GRAPHS else until
        turns.first(name)


def measure(turns: Turns, rounds: int) -> None:
    """Rounds until `turns.until`, with time left for what comes behind them; then its processes end."""
    turns.compare()
    turns.ask("warm")
    longest = 0.0
    for _ in range(rounds):
        start = time.monotonic()
        if start + 2 * longest > turns.until:
            break
        turns.step()
        longest = max(longest, time.monotonic() - start)
    turns.ask("peak")
    turns.ask("share")
    turns.close()


def judge(systems: Mapping[str, list[Json]]) -> None:
    """A baseline that fails is told in the table. Ours that fails is what the proof is about."""
    rows = [(f"{system}, {row['name']}", row) for system, rows in systems.items() for row in rows]
    wrong = [f"{label}: {row['reason']}" for label, row in rows if row["name"].startswith(OURS) and row["reason"]]
    late = [label for label, row in rows if row["reason"] == LATE]
    if [reason for reason in wrong if not reason.endswith(LATE)]:
        raise AssertionError("; ".join(wrong))
    if late:
        raise OutOfTime(", ".join(late))
