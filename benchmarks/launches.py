"""Launches of one training step by kind: `python -m benchmarks.launches`. By torch's profiler on a GPU, without one an
estimate by rules (systems/launch_count.py). Ours, the same networks in plain torch, and for CUT and FastCUT stock
code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import zoo
from benchmarks.engine import options
from benchmarks.engine.machine import Run
from benchmarks.engine.report import provenance, write_files
from benchmarks.engine.work import Json
from benchmarks.systems.launch_count import count
from benchmarks.systems.launch_rules import KINDS
from benchmarks.systems.turns import LIMITS
from i2i.methods import METHODS
from kernels._build import ROOMS

ESTIMATE = (
    "**An estimate by rules, not a measurement**: the step ran on CPU tensors. Torch's operators were counted by what "
    "benchmarks/systems/launch_rules.py says each launches on CUDA, ours by what their launchers launch on an H100 "
    "that is only described. Copies between host and device are not in it, nor are kernels that cuDNN and cuBLAS add "
    "of their own accord. Autocast's choice of dtypes is that for CPUs."
)
PROFILED = (
    "Kernels, copies and fills that torch's profiler saw in a step after warm-up, without CUDA graphs. Kinds are told "
    "by the kernels' names: copies within the device count as casts, every addition as one of gradients."
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.launches",
        description="Counts what a training step launches on a GPU, by kind: with torch's profiler there, by rules on "
        "a CPU, where next to nothing is computed.",
    )
    options.add_place(parser, "launches_METHOD_PRECISION.json and .md")
    parser.add_argument("--method", choices=METHODS, default="cut", help="default cut")
    parser.add_argument("--precision", choices=LIMITS, default="bfloat16", help="default bfloat16")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the method's own)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, settings: Json | None = None) -> int:
    """0; 1 when a contestant failed; 2 when it cannot begin; 130 after Ctrl-C. `settings`: other ones, for tests."""
    return options.run(lambda: count_and_report(parse(argv), settings or {}))


def count_and_report(asked: argparse.Namespace, settings: Json) -> int:
    device, folder = options.place(asked, plots=False)
    settings = settings | {"cuda_graphs": False}  # a graph is one launch, whatever is in it
    if asked.size is not None:
        settings = settings | {"crop_size": asked.size}
    run = Run("benchmarks.launches", device)
    rows = [counted(asked.method, name, asked.precision, settings, device) for name in zoo.names(asked.method)]
    result = run.result(rows, interrupted=False, other_load=None, method=asked.method, precision=asked.precision)
    result |= {"estimate": device.type != "cuda", "settings": settings}
    paths = write(result, folder)
    print("\n".join([*table(rows), "", *about(result), "", *map(str, paths)]))
    return int(any(row["status"] != "ok" for row in rows))


def counted(method: str, name: str, precision: str, settings: Json, device: torch.device) -> Json:
    """A contestant's row. One that fails costs its own."""
    print(f"{method}, {name} ...", file=sys.stderr)
    try:
        found, steps = count(lambda: zoo.contestant(str(device), method, name, precision, settings), device)
    except Exception as error:
        return {"name": name, "status": "error", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    kinds = {kind: found.kinds[kind] for kind in (*KINDS, *ROOMS) if found.kinds[kind]}
    row = {"name": name, "status": "ok", "reason": "", "steps": steps, "launches": sum(kinds.values())}
    return row | {"kinds": kinds, "names": dict(found.names.most_common())}


def about(result: Json) -> list[str]:
    steps = max((row.get("steps", 1) for row in result["rows"]), default=1)
    lines = [ESTIMATE if result["estimate"] else PROFILED]
    return lines if steps == 1 else [*lines, f"Of {steps} steps together, in which all networks have their updates."]


def table(rows: Sequence[Json]) -> list[str]:
    """A column for each contestant, a line for each kind."""
    good = [row for row in rows if row["status"] == "ok"]
    kinds = [kind for kind in (*KINDS, *ROOMS) if any(kind in row["kinds"] for row in good)]
    lines = ["| | " + " | ".join(row["name"] for row in good) + " |", "|---|" + "---:|" * len(good)]
    for kind in kinds:
        lines.append(f"| {kind} | " + " | ".join(str(row["kinds"].get(kind, "–")) for row in good) + " |")
    lines.append("| **all** | " + " | ".join(f"**{row['launches']}**" for row in good) + " |")
    return lines + [f"* **{row['status']}** {row['name']}: {row['reason']}" for row in rows if row["reason"]]


def markdown(result: Json) -> str:
    given = ", ".join(f"{key}={value}" for key, value in result["settings"].items())
    title = f"Launches of a training step of {result['method']}, {result['precision']}"
    lines = [f"# {title}{f', {given}' if given else ''}", "", *provenance(result), "", *about(result), ""]
    lines += [*table(result["rows"]), ""]
    for row in result["rows"]:
        if row["status"] == "ok":
            names = ", ".join(f"{name} {launches}" for name, launches in row["names"].items())
            lines += [f"**{row['name']}**, by {'operator' if result['estimate'] else 'kernel'}: {names}.", ""]
    return "\n".join(lines)


def write(result: Json, folder: Path) -> list[Path]:
    name = f"launches_{result['method']}_{result['precision']}"
    return write_files(folder, name, result, markdown(result), {})


if __name__ == "__main__":
    sys.exit(main())
