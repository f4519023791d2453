"""Where the time of a training step on a CPU goes: `python -m benchmarks.profile`. Ours, the same networks in plain
torch, and for systems that have one the step in stock code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import kernels
from benchmarks import zoo
from benchmarks.engine import options
from benchmarks.engine.machine import Run
from benchmarks.engine.report import provenance, write_files
from benchmarks.engine.work import Json
from benchmarks.systems.step_profile import KINDS, profiled, quickest
from benchmarks.systems.turns import LIMITS
from i2i.errors import UsageError
from i2i.methods import METHODS

ROUNDS = 3


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description="Profiles a training step on the CPU, by kind of work, with torch's profiler.",
    )
    options.add_arguments(
        parser,
        f"steps of each contestant after the first, of which the quickest is shown (default {ROUNDS})",
        "profile_METHOD_PRECISION.json and .md",
        default=ROUNDS,
    )
    parser.set_defaults(device="cpu")
    parser.add_argument("--method", choices=METHODS, default="cut", help="default cut")
    parser.add_argument("--precision", choices=LIMITS, default="float32", help="default float32")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the method's own)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, settings: Json | None = None) -> int:
    """0; 1 when a contestant failed; 2 when it cannot begin; 130 after Ctrl-C. `settings`: other ones, for tests."""
    return options.run(lambda: profile_and_report(parse(argv), settings or {}))


def profile_and_report(asked: argparse.Namespace, settings: Json) -> int:
    if asked.device != "cpu":
        raise UsageError("--device: got cuda, want cpu; what a step runs on a GPU is in python -m benchmarks.launches")
    device, folder = options.place(asked, plots=False)
    if asked.size is not None:
        settings = settings | {"crop_size": asked.size}
    kernels.keep_freed_memory()  # as i2i's trainer does
    run = Run("benchmarks.profile", device)
    rows = [measured(asked, name, settings) for name in zoo.names(asked.method)]
    result = run.result(rows, interrupted=False, other_load=None, method=asked.method, precision=asked.precision)
    result |= {"settings": settings}
    paths = write(result, folder)
    print("\n".join([*table(rows), "", *map(str, paths)]))
    return int(any(row["status"] != "ok" for row in rows))


def measured(asked: argparse.Namespace, name: str, settings: Json) -> Json:
    """A contestant's row. One that fails costs its own."""
    print(f"{asked.method}, {name} ...", file=sys.stderr)
    try:
        model, batch, steps = zoo.contestant("cpu", asked.method, name, asked.precision, settings)

        def turn() -> None:
            for _ in range(steps):
                model.step(*batch)

        turn()
        found = quickest([profiled(turn) for _ in range(asked.rounds)])
    except Exception as error:
        return {"name": name, "status": "error", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return {"name": name, "status": "ok", "reason": "", "steps": steps} | found


def table(rows: Sequence[Json]) -> list[str]:
    """A column for each contestant, a line for each kind: milliseconds, and of how many hundred they are."""
    good = [row for row in rows if row["status"] == "ok"]
    kinds = [kind for kind in KINDS if any(kind in row["kinds"] for row in good)]
    lines = ["| | " + " | ".join(row["name"] for row in good) + " |", "|---|" + "---:|" * len(good)]
    for kind in kinds:
        lines.append(f"| {kind} | " + " | ".join(_cell(row, kind) for row in good) + " |")
    lines.append("| **all** | " + " | ".join(f"**{1e3 * row['seconds']:.4g}**" for row in good) + " |")
    lines.append("| pages faulted in | " + " | ".join(str(row["page_faults"]) for row in good) + " |")
    return lines + [f"* **{row['status']}** {row['name']}: {row['reason']}" for row in rows if row["reason"]]


def _cell(row: Json, kind: str) -> str:
    seconds = row["kinds"].get(kind)
    return "–" if seconds is None else f"{1e3 * seconds:.3g} ({100 * seconds / row['seconds']:.1f} %)"


def markdown(result: Json) -> str:
    given = ", ".join(f"{key}={value}" for key, value in result["settings"].items())
    title = f"Profile of a training step of {result['method']}, {result['precision']}"
    steps = max((row.get("steps", 1) for row in result["rows"]), default=1)
    about = "Milliseconds, and their share, of the quickest step after the first, by torch's profiler: self times, "
    about += "copies apart from the operators they are made for. The profiler itself costs the small calls most."
    if steps > 1:
        about += f" Of {steps} steps together, in which all networks have their updates."
    lines = [f"# {title}{f', {given}' if given else ''}", "", *provenance(result), "", about, ""]
    return "\n".join([*lines, *table(result["rows"]), ""])


def write(result: Json, folder: Path) -> list[Path]:
    return write_files(folder, f"profile_{result['method']}_{result['precision']}", result, markdown(result), {})


if __name__ == "__main__":
    sys.exit(main())
