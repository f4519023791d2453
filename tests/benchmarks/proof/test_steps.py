"""The part that measures whole steps: its contestants, their order, contestants that are late or wrong."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.proof import steps
from benchmarks.proof.part import Asked, OutOfTime
from benchmarks.prove import PARTS
from benchmarks.systems import turns
from benchmarks.systems.stock import CAREFUL, GRAPHS, OURS, PUBLISHED
from benchmarks.systems.turns import LATE

SIZES = {"systems": {"CUT": {}, "MUNIT": {"dim": 1}}, "size": 64, "rounds": 2}


def asked(tmp_path, device: str = "cuda", seconds: float = 600.0) -> Asked:
    return Asked(torch.device(device), time.monotonic() + seconds, tmp_path, SIZES)


def test_contestants(tmp_path):
    table = steps.contestants("MUNIT", asked(tmp_path))
    assert list(table) == [PUBLISHED, CAREFUL, GRAPHS, OURS, steps.NO_GRAPH, steps.OURS_FLOAT32]
    plain = table[steps.NO_GRAPH]
    assert plain.module == "benchmarks.systems.stock_munit" and plain.precision == "bfloat16"
    assert plain.arguments == {"name": OURS, "size": 64, "networks": {"dim": 1, "cuda_graphs": False}}
    assert table[PUBLISHED].precision == table[steps.OURS_FLOAT32].precision == "float32"
    on_cpu = steps.contestants("CUT", asked(tmp_path, "cpu"))
    assert list(on_cpu) == [PUBLISHED, CAREFUL, OURS, steps.OURS_FLOAT32]
    assert PARTS["steps"].sizes["cuda"]["systems"].keys() == {"CUT", "CycleGAN", "MUNIT"}


class Fake:
    """A contestant that answers at once. `log`: what was sent, by whom; `planted`: answers or errors instead."""

    log: list[tuple[str, str]] = []
    planted: dict[tuple[str, str], object] = {}

    def __init__(self, contestant, device, log):
        settings = contestant.arguments["networks"]
        self.name = contestant.arguments["name"] if "cuda_graphs" not in settings else steps.NO_GRAPH
        self.system = contestant.module.rpartition("_")[2]

    def send(self, command, *given):
        self.command = command
        self.log.append((f"{self.system} {self.name}", command))
        if command == "first":
            torch.save({"G": torch.ones(2)}, given[0])

    def receive(self, until):
        planted = self.planted.get((f"{self.system} {self.name}", self.command))
        if isinstance(planted, Exception):
            raise planted
        answers = {
            "first": {"losses": {"G": 1.0}, "first_step_s": 2.0},
            "step": {"seconds": 0.02},
            "peak": {"peak_bytes": 1},
        }
        return planted or answers.get(self.command, {})

    def close(self):
        self.log.append((f"{self.system} {self.name}", "close"))


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(turns, "Process", Fake)
    monkeypatch.setattr(Fake, "log", [])
    monkeypatch.setattr(Fake, "planted", {})
    return Fake


def test_all_compile_at_once_and_one_system_is_timed_at_a_time(fake, tmp_path):
    found: dict = {}
    steps.run(asked(tmp_path), found)
    started = [name for name, command in fake.log if command == "first"]
    assert started[:2] == [f"cut {GRAPHS}", f"munit {GRAPHS}"] and len(started) == 12
    ended = [name for name, command in fake.log if command == "close"]
    assert [name.split()[0] for name in ended] == ["cut"] * 6 + ["munit"] * 6
    last = max(i for i, (name, _) in enumerate(fake.log) if name.startswith("cut"))
    assert [e for e in fake.log[:last] if e[0].startswith("munit")] == [(f"munit {GRAPHS}", "first")]
    of_ours = [command for name, command in fake.log if name == f"cut {OURS}"]
    assert of_ours == ["first", "warm", "step", "step", "peak", "share", "close"]
    for rows in found["systems"].values():
        assert all(row["status"] == "ok" and row["median_s"] == 0.02 and row["peak_bytes"] == 1 for row in rows)


def test_a_compiler_that_is_late_costs_its_row(fake, tmp_path):
    fake.planted[f"cut {GRAPHS}", "first"] = RuntimeError(LATE)
    found: dict = {}
    with pytest.raises(OutOfTime, match=f"CUT, {GRAPHS}"):
        steps.run(asked(tmp_path), found)
    rows = {row["name"]: row for row in found["systems"]["CUT"]}
    assert rows[GRAPHS]["status"] == "error" and "median_s" not in rows[GRAPHS]
    assert rows[OURS]["median_s"] == 0.02 and found["systems"]["MUNIT"][0]["median_s"] == 0.02


def test_a_baseline_that_fails_is_told_and_ours_fails_the_part(fake, tmp_path):
    fake.planted[f"munit {GRAPHS}", "step"] = RuntimeError("overwritten by a subsequent run")
    found: dict = {}
    steps.run(asked(tmp_path), found)
    rows = {row["name"]: row for row in found["systems"]["MUNIT"]}
    assert rows[GRAPHS]["status"] == "error" and "overwritten" in rows[GRAPHS]["reason"]
    fake.planted[f"munit {steps.NO_GRAPH}", "warm"] = RuntimeError("out of memory")
    with pytest.raises(AssertionError, match="MUNIT, ours, no graph: out of memory"):
        steps.run(asked(tmp_path), found)


def test_ctrl_c_keeps_what_was_measured(fake, tmp_path):
    fake.planted[f"munit {OURS}", "step"] = None
    receive = fake.receive

    def interrupted(self, until):
        if (self.system, self.name, self.command) == ("munit", OURS, "step"):
            raise KeyboardInterrupt
        return receive(self, until)

    fake.receive = interrupted
    try:
        found: dict = {}
        with pytest.raises(KeyboardInterrupt):
            steps.run(asked(tmp_path), found)
    finally:
        fake.receive = receive
    assert all(row["median_s"] == 0.02 for row in found["systems"]["CUT"])
    assert len([name for name, command in fake.log if command == "close"]) == 12


def test_rounds_end_with_the_time(monkeypatch, fake, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: clock[0])
    receive = fake.receive

    def slow(self, until):
        clock[0] += 10.0 * (self.command == "step")
        return receive(self, until)

    monkeypatch.setattr(fake, "receive", slow)
    table = {name: c for name, c in steps.contestants("CUT", asked(tmp_path)).items() if name in (PUBLISHED, OURS)}
    with turns.Turns(table, PUBLISHED, torch.device("cuda"), turns.Progress(9), tmp_path) as group:
        for name in table:
            group.start(name)
            group.first(name)
        group.until = 95.0  # rounds take 20 s: the fourth would leave no time for what comes behind them
        steps.measure(group, rounds=9)
    assert [len(row["samples_s"]) for row in group.summary().values()] == [3, 3]
