"""One trainer: compared in float64, then its contestants in turn, a process for each, a table for each precision."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.engine.progress import Progress
from benchmarks.engine.work import Json
from benchmarks.outside import compare, lines
from benchmarks.outside.trainers import TRAINERS
from benchmarks.systems import turns
from benchmarks.systems.turns import Contestant, Rows, Turns, scratch

MODULE = "benchmarks.outside.child"
COMMANDS = 3  # to each contestant besides those that are timed: the first step, warm, peak


def steps(name: str, precisions: Sequence[str], rounds: int) -> int:
    """How many steps `measure` makes of a Progress."""
    trainer = TRAINERS[name]
    asked = 2 + len(precisions) + len(lines.compared(trainer))
    return asked + sum(len(lines.contestants(trainer, p)) * (rounds + COMMANDS) for p in precisions)


def measure(
    name: str, arguments: Json, precisions: Sequence[str], rounds: int, device: torch.device, progress: Progress
) -> tuple[Json, bool]:
    """(what was found, whether Ctrl-C ended it). arguments: of child.contestant, besides `contest` and `initial`."""
    row: Json = {"trainer": name, "size": arguments["size"], "batch": arguments["batch"], "tables": {}}
    row |= {"comparison": {}, "own": {}, "status": "ok", "reason": ""}
    interrupted = False
    with scratch() as folder:
        arguments = arguments | {"initial": str(folder / "initial.pt")}
        oracle = folder / "oracle.pt"
        try:
            _compare(row, arguments, precisions, device, progress, folder, oracle)
            if row["status"] == "ok":
                for precision in precisions:
                    _table(row, arguments, precision, rounds, device, progress, folder, oracle)
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted: reporting what was measured", file=sys.stderr)
    return row, interrupted


def _compare(
    row: Json,
    arguments: Json,
    precisions: Sequence[str],
    device: torch.device,
    progress: Progress,
    folder: Path,
    oracle: Path,
) -> None:
    """Fills `comparison` and `own` of the row; its status is an error where stock itself does not run in float64."""
    contestant = Contestant(MODULE, arguments | {"contest": None}, lines.FLOAT32)
    process = turns.Process(contestant, device, folder / "compare.log")

    def ask(label: str, *command: object) -> Json:
        progress.show(f"{row['trainer']}, float64: {label}")
        process.send(*command)
        try:
            return process.receive(float("inf"))
        except RuntimeError as error:
            return {"error": str(error)}
        finally:
            progress.step()

    try:
        stock = ask("stock", "stock", str(oracle))
        if "error" in stock:
            row |= {"status": "error", "reason": f"does not run here: {stock['error']}"}
            return
        row["losses"] = stock["losses"]
        row["unmended"] = ask("stock as it is", "unmended")
        for precision in precisions:
            row["own"][precision] = ask(f"stock in {precision}", "own", precision)
        for line in lines.compared(TRAINERS[row["trainer"]]):
            row["comparison"][line] = ask(line, "line", line)
    finally:
        process.close()


class Table(Turns):
    """The contestants of one precision; judged by float64 and the error rule instead of by the baseline."""

    check: Callable[[Json, Path], None]

    def compare(self) -> None:
        for name in list(self.running):
            self.check(self.rows[name], self.gradients[name])
            if self.rows[name]["status"] != "ok":
                self.running.pop(name).close()


def _table(
    row: Json,
    arguments: Json,
    precision: str,
    rounds: int,
    device: torch.device,
    progress: Progress,
    folder: Path,
    oracle: Path,
) -> None:
    """Fills one of the row's tables."""
    name = row["trainer"]
    contests = lines.contestants(TRAINERS[name], precision)
    chosen = {n: Contestant(MODULE, arguments | {"contest": list(c)}, c.precision) for n, c in contests.items()}
    exact = torch.load(oracle)

    def judge(found: Json, gradients: Path) -> None:
        held = contests[found["name"]].precision
        own = row["own"].get(held) or {"error": ""}
        compare.judge(found, torch.load(gradients), exact, row["losses"], held, own)

    baseline = next(iter(contests))
    table = Table(chosen, baseline, device, progress, folder, f"{name}, {precision}, ")
    with table:
        table.check = judge
        row["tables"][precision] = table.rows
        for contestant, contest in contests.items():
            table.rows[contestant]["line"] = contest.line
        try:
            for contestant, contest in contests.items():
                if reason := refused(row["comparison"], contest.line):
                    table.rows[contestant] |= {"status": "FAIL", "reason": reason}
                    continue
                table.start(contestant)
                table.first(contestant)
            table.compare()
            table.ask("warm")
            for _ in range(rounds):
                table.step()
            table.ask("peak")
        finally:
            relate(table.summary(), precision)


def refused(comparison: Json, line: str) -> str:
    """Why a contestant is not timed: its line was compared in float64 and failed there."""
    line = lines.ACCELERATE if line == lines.PRECISION else line
    found = comparison.get(line, {})
    reason = found.get("error") or found.get("reason")
    return f"in float64: {reason}" if reason and line != lines.LAST else ""


def relate(rows: Rows, precision: str) -> None:
    """Adds to each row how many times faster it is than stock in the same precision and than the published float32."""
    published = rows[lines.STOCK if precision == lines.FLOAT32 else lines.PUBLISHED].get("median_s")
    stock = rows[lines.STOCK].get("median_s")
    for row in rows.values():
        if "median_s" in row:
            row["than_published"] = published / row["median_s"] if published else None
            row["than_stock"] = stock / row["median_s"] if stock and row["name"] != lines.PUBLISHED else None
