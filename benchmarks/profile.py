"""Where the time of a training step goes, by kind of operator: `python -m benchmarks.profile --system NAME`. On the
fused operators, in plain torch and, where the zoo has it, in stock code; torch's profiler on a CPU, self times."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import kernels
from benchmarks import zoo
from benchmarks.engine import options
from benchmarks.engine.machine import Run
from benchmarks.engine.report import provenance, write_files
from benchmarks.engine.work import Json
from benchmarks.systems.child import is_convolution
from benchmarks.systems.turns import LIMITS
from i2i.errors import UsageError
from i2i.methods import METHODS
from kernels import backends
from kernels._build import ROOMS

STEP = "a whole step"  # the range around it: its self time is what lies in no operator
OURS = "kernels."  # begins the names of the ranges around our operators, which torch's profiler does not know
# Kinds by parts of an operator's name, the first that fits. Norms of plain torch are made of arithmetic, sums and
# additions, and cannot be told from others by name.
PARTS = {
    "optimiser": ("_fused_adam", "optimizer"),
    "batch norm": ("batch_norm", "batchnorm"),
    "activations": ("relu", "threshold", "tanh", "sigmoid", "softplus"),
    "matrix products": ("mm", "matmul", "::linear", "einsum"),
    "copies and casts": ("copy", "::cat", "clone", "contiguous", "::to", "stack", "_copies"),
    "fills": ("zero", "fill_", "ones", "full"),
    "additions": ("::add", "foreach_add"),
    "sums and means": ("sum", "mean", "norm", "var"),
    "arithmetic": ("mul", "div", "sub", "sqrt", "square", "pow", "where", "masked_fill", "neg", "abs", "sgn", "recip"),
}
CONVOLUTIONS, OTHERS, OUTSIDE = "convolutions", "other operators", "in no operator (Python)"
KINDS = (CONVOLUTIONS, *(OURS + room for room in ROOMS), *PARTS, OTHERS, OUTSIDE)


def kind_of(name: str) -> str:
    """Of an operator or a range, by the profiler's name."""
    if name == STEP:
        return OUTSIDE
    if name.startswith(OURS):
        return name
    if is_convolution(name):
        return CONVOLUTIONS
    name = name.lower()
    return next((kind for kind, parts in PARTS.items() if any(part in name for part in parts)), OTHERS)


class _Watched:
    """The native module, each call of a function of it a range of the profiler."""

    def __init__(self, module: Any, name: str):
        self._module, self._name = module, name

    def __getattr__(self, function: str) -> Callable[..., Any]:
        call = getattr(self._module, function)

        def ranged(*given: Any) -> Any:
            with torch.profiler.record_function(self._name):
                return call(*given)

        return ranged


@contextlib.contextmanager
def our_ranges() -> Iterator[None]:
    """Calls of our C++ operators inside are ranges with the name of their room."""
    with contextlib.ExitStack() as stack:
        for room in ROOMS:
            module: Any = backends.launcher(room, "cpu")
            load, name = module.load, OURS + room
            stack.enter_context(mock.patch.object(module, "load", lambda load=load, name=name: _Watched(load(), name)))
        yield


def profiled(model: Any, batch: Sequence[Tensor], steps: int) -> Json:
    """Milliseconds and calls per step, by kind and by operator, of so many steps after as many for warm-up."""
    for _ in range(steps):
        model.step(*batch)
    cpu = torch.profiler.ProfilerActivity.CPU
    with our_ranges(), torch.profiler.profile(activities=[cpu]) as profile:
        for _ in range(steps):
            with torch.profiler.record_function(STEP):
                model.step(*batch)
    kinds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for row in profile.key_averages():
        took, kind = row.self_cpu_time_total / 1e3 / steps, kind_of(row.key)
        kinds[kind] += took
        calls[kind] += row.count
        names[row.key] += took
    each = {kind: {"ms": kinds[kind], "calls": calls[kind] / steps} for kind in KINDS if kinds[kind]}
    return {"ms": sum(kinds.values()), "kinds": each, "operators": dict(names.most_common(30))}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile",
        description="Profiles a training step of a published system on a CPU and tells the time of its operators by "
        "kind, for all contestants of the zoo.",
    )
    options.add_place(parser, "profile_SYSTEM_PRECISION.json and .md")
    parser.add_argument("--system", choices=METHODS, default="cut", help="default cut")
    parser.add_argument("--precision", choices=LIMITS, default="float32", help="default float32")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: the system's own)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, settings: Json | None = None) -> int:
    """0; 2 when it cannot begin; 130 after Ctrl-C. `settings`: other ones, for tests."""
    return options.run(lambda: profile_and_report(parse(argv), settings or {}))


def profile_and_report(asked: argparse.Namespace, settings: Json) -> int:
    if asked.device == "cuda":
        raise UsageError("--device cuda: this profile is a CPU's; a GPU's kernels are counted by benchmarks.launches")
    asked.device = "cpu"
    device, folder = options.place(asked, plots=False)
    if asked.size is not None:
        settings = settings | {"crop_size": asked.size}
    kernels.keep_freed_memory()  # as i2i's trainer does
    run, rows = Run("benchmarks.profile", device), []
    for name in zoo.names(asked.system):
        print(f"{asked.system}, {name} ...", file=sys.stderr)
        model, batch, steps = zoo.contestant("cpu", asked.system, name, asked.precision, settings)
        rows.append({"name": name, "steps": steps} | profiled(model, batch, steps))
        del model
    result = run.result(rows, interrupted=False, other_load=None, system=asked.system, precision=asked.precision)
    paths = write(result | {"settings": settings}, folder)
    print("\n".join([*table(rows), "", *map(str, paths)]))
    return 0


def table(rows: Sequence[Json]) -> list[str]:
    """A column for each contestant, a line for each kind: share of the step, milliseconds, calls."""
    lines = ["| | " + " | ".join(row["name"] for row in rows) + " |", "|---|" + "---:|" * len(rows)]
    for kind in KINDS:
        if any(kind in row["kinds"] for row in rows):
            lines.append(f"| {kind} | " + " | ".join(_cell(row, row["kinds"].get(kind)) for row in rows) + " |")
    return [*lines, "| **all** | " + " | ".join(f"**{row['ms']:.0f} ms**" for row in rows) + " |"]


def _cell(row: Json, found: Json | None) -> str:
    if found is None:
        return "–"
    return f"{100 * found['ms'] / row['ms']:.1f} %, {found['ms']:.0f} ms, {found['calls']:.0f}"


def markdown(result: Json) -> str:
    given = ", ".join(f"{key}={value}" for key, value in result["settings"].items())
    title = f"Profile of a training step of {result['system']}, {result['precision']}"
    lines = [f"# {title}{f', {given}' if given else ''}", "", *provenance(result), ""]
    lines += ["Self time of operators by kind: share, milliseconds per step, calls per step.", ""]
    lines += [*table(result["rows"]), ""]
    for row in result["rows"]:
        names = ", ".join(f"{name} {took:.0f}" for name, took in row["operators"].items())
        lines += [f"**{row['name']}**, milliseconds by operator: {names}.", ""]
    return "\n".join(lines)


def write(result: Json, folder: Path) -> list[Path]:
    name = f"profile_{result['system']}_{result['precision']}"
    return write_files(folder, name, result, markdown(result), {})


if __name__ == "__main__":
    sys.exit(main())
