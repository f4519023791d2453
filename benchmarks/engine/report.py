"""Rows to a result: summary, JSON, Markdown, written atomically."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ops.norm import FUSED, INTO, PROVIDERS

Json = dict[str, Any]
SCHEMA = 1
FORMATS = (
    ("float32", "contiguous"),
    ("float32", "channels_last"),
    ("bfloat16", "contiguous"),
    ("bfloat16", "channels_last"),
)
BASELINES = tuple(provider.name for provider in PROVIDERS if provider.name not in (FUSED, INTO))

_NOTES = {
    "cpu": (
        "CPU figures: wall time, inputs as warm as the caches keep them between calls. They say nothing about a GPU.",
        "torch.compile's ReLU backward saves a bool mask whose loads and stores are very slow on CPUs with AVX-512 "
        "(torch 2.13): fwd+bwd rows with ReLU flatter us against it; leaky ReLU and norm + residual are the fair ones.",
        "eager at N = 1 with channels_last: torch 2.13's instance norm returns a wrong gradient when the arriving one "
        "is channels_last. Where the gate meets that, the cell says FAIL, and `eager NCHW` is the baseline.",
        "Large tensors: where the JSON says freed_memory_kept (glibc), kernels.keep_freed_memory() was in force for "
        f"every provider. Elsewhere each allocation is paid in page faults, and `{INTO}` shows the kernel without.",
        "Peak memory: sum of allocations minus releases of torch's CPU allocator during one call, by the profiler.",
    ),
    "cuda": (
        "GPU figures: device time per call of a CUDA graph over argument sets larger than 3x L2 together. Wall time "
        "per eager call is in the JSON (wall_us_per_call) and in its own column.",
        "Peak memory: max_memory_allocated during one call.",
    ),
}


def summarise(rows: Sequence[Json]) -> Json:
    """Ratios baseline / fused by mode, dtype and format; losses; failures."""
    groups: Json = {}
    order = {(dtype, memory_format): i for i, (dtype, memory_format) in enumerate(FORMATS)}
    for row in sorted(rows, key=lambda row: (row["mode"], order[row["dtype"], row["memory_format"]])):
        for name, result in row["providers"].items():
            if "fused_speedup" in result:
                for group in (row["mode"], f"{row['mode']} {row['dtype']} {row['memory_format']}"):
                    groups.setdefault(group, {}).setdefault(name, []).append(result["fused_speedup"])
    return {
        "speedups": {
            group: {name: summarise_ratios(ratios) for name, ratios in by_name.items()}
            for group, by_name in groups.items()
        },
        "losses": [
            {"row": row_label(row), "baseline": name, "ratio": result["fused_speedup"], "noisy": is_noisy(row)}
            for row, name, result in _results(rows)
            if result.get("loss")
        ],
        "failures": [
            {"row": row_label(row), "provider": name, "status": result["status"], "reason": result["reason"]}
            for row, name, result in _results(rows)
            if result["status"] in ("FAIL", "error")
        ]
        + [
            {"row": row_label(row), "provider": "", "status": "error", "reason": row["error"]}
            for row in rows
            if "error" in row
        ],
    }


def is_noisy(row: Json) -> bool:
    """Whether other processes disturbed so many rounds that disturbed ones are among the samples."""
    return row.get("noisy", False)


def loss_line(loss: Json) -> str:
    noisy = ", noisy" if loss["noisy"] else ""
    return f"loss {loss['ratio']:.2f}x against {loss['baseline']}: {loss['row']}{noisy}"


def summarise_ratios(ratios: Sequence[float]) -> Json:
    """Geometric mean and range."""
    return {"geomean": statistics.geometric_mean(ratios), "min": min(ratios), "max": max(ratios), "rows": len(ratios)}


def _results(rows: Sequence[Json]) -> Iterable[tuple[Json, str, Json]]:
    return ((row, name, result) for row in rows for name, result in row["providers"].items())


def row_label(row: Json) -> str:
    return f"{row['operator']} {_sizes(row)} {row['dtype']} {row['memory_format']} {row['mode']}"


def _sizes(row: Json) -> str:
    return "x".join(map(str, row["shape"])) + (f" p{row['padding']}" if row["padding"] else "")


# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(result: Json) -> str:
    rows, summary = result["rows"], result["summary"]
    lines = [f"# Fused operators: {result['kind']}", "", *provenance(result), ""]
    lines += [f"* {note}" for note in _NOTES[result["device"]]]
    lines += ["", "Providers:", ""]
    lines += [f"* **{provider.name}**: {provider.about}" for provider in PROVIDERS]
    lines += [
        "",
        "## How many times faster than",
        "",
        "Geometric mean over rows (min to max, rows); below 1 fused is slower.",
        "",
    ]
    lines += _speedup_table(summary["speedups"])
    lines += ["", f"## Losses ({len(summary['losses'])})", ""]
    lines += [f"* {loss_line(loss)}" for loss in summary["losses"]]
    lines += [] if summary["losses"] else ["None."]
    lines += ["", f"## Failed the correctness gate or raised ({len(summary['failures'])})", ""]
    lines += [f"* **{f['status']}** {f['provider']}: {f['row']}: {f['reason']}" for f in summary["failures"]]
    lines += [] if summary["failures"] else ["None."]
    lines += ["", "## Rows", "", *_row_legend(result["device"])]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        lines += [
            "",
            f"### {operator}",
            "",
            *_row_table([row for row in rows if row["operator"] == operator], result["device"]),
        ]
    return "\n".join(lines) + "\n"


def provenance(result: Json) -> list[str]:
    """Machine, versions, commit, date and command, as lines of Markdown."""
    machine, versions, commit = result["machine"], result["versions"], result["commit"]
    gpu = machine.get("gpu")
    state = (
        ""
        if commit["hash"] is None
        else f"commit {commit['hash'][:12]}{' with local changes' if commit['dirty'] else ''}, "
    )
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gib']} GiB"
        + (f"; {gpu['name']}, driver {gpu.get('driver_version', '?')}, SM {gpu.get('clocks.sm', '?')}" if gpu else "")
        + f". torch {versions['torch']}, triton {versions['triton']}, Python {versions['python']}, "
        f"C++ operators at {versions['kernels_isa']}.",
        "",
        f"{state}{result['date']}, `{result['command']}`"
        + (", **interrupted: only the rows below were measured**" if result["interrupted"] else ""),
    ]
    if result["other_load"] is not None and result["other_load"] > 0.08:
        lines += [
            "",
            f"**Shared machine**: other processes used {result['other_load']:.2f} cores on average; figures are noisy.",
        ]
    return lines


def _speedup_table(speedups: Json) -> list[str]:
    names = [name for name in BASELINES if any(name in by_name for by_name in speedups.values())]
    lines = _header(["rows", *names])
    for group, by_name in speedups.items():
        cells = [
            f"**{r['geomean']:.2f}x** ({r['min']:.2f} to {r['max']:.2f}, {r['rows']})"
            if (r := by_name.get(name))
            else "–"
            for name in names
        ]
        lines.append(_line([group, *cells]))
    return lines


def _row_legend(device: str) -> list[str]:
    wall = " `wall` is microseconds per eager call as the host sees it." if device == "cuda" else ""
    return [
        "Milliseconds per call: median (20th to 80th percentile). After a baseline's time: how many times faster fused "
        "is. `% of copy`: time of a copy that moves the row's necessary bytes, measured in the same rounds, over the "
        "row's time; in brackets the forward into a given output. `peak MiB`: fused / eager. `rounds`: how many were "
        "run, and in how many of them other processes took our cores: those are left out, unless they are more than "
        f"half (**noisy**).{wall}"
    ]


def _row_table(rows: Sequence[Json], device: str) -> list[str]:
    names = [name for name in BASELINES if any(name in row["providers"] for row in rows)]
    compiled = any("compile_seconds" in result for row in rows for result in row["providers"].values())
    extra = ["compile s"] * compiled + ["wall fused / eager"] * (device == "cuda")
    head = ["shape", "dtype", "format", "mode", "fused", "% of copy", *names, "peak MiB", *extra, "rounds"]
    lines = _header(head)
    for row in rows:
        providers = row["providers"]
        if "error" in row:
            lines.append(
                _line([_sizes(row), row["dtype"], row["memory_format"], row["mode"], "error", *["–"] * (len(head) - 5)])
            )
            continue
        tail = []
        if compiled:
            seconds = providers.get("torch.compile", {}).get("compile_seconds")
            tail.append("–" if seconds is None else f"{seconds:.1f}")
        if device == "cuda":
            tail.append(pair(providers, "wall_us_per_call", 1))
        disturbed = row["rounds_disturbed"]
        lines.append(
            _line(
                [
                    _sizes(row),
                    row["dtype"],
                    row["memory_format"].replace("channels_last", "CL").replace("contiguous", "NCHW"),
                    row["mode"],
                    cell(providers.get(FUSED)),
                    _copy_cell(providers),
                    *(cell(providers.get(name)) for name in names),
                    pair(providers, "peak_bytes", 2**20),
                    *tail,
                    f"{row['rounds']}, {disturbed} disturbed{', **noisy**' if is_noisy(row) else ''}",
                ]
            )
        )
    return lines


def cell(result: Json | None) -> str:
    if result is None:
        return "–"
    if result["status"] != "ok":
        return result["status"] if result["status"] == "absent" else f"**{result['status']}**"
    text = f"{result['median_ms']:.3g} ({result['p20_ms']:.3g}–{result['p80_ms']:.3g})"
    if "fused_speedup" not in result:
        return text
    ratio = f"{result['fused_speedup']:.2f}x"
    return f"{text} **loss {ratio}**" if result["loss"] else f"{text} {ratio}"


def _copy_cell(providers: Json) -> str:
    percent = [
        f"{r['percent_of_copy']:.0f}" if "percent_of_copy" in (r := providers.get(name, {})) else ""
        for name in (FUSED, INTO)
    ]
    return (percent[0] or "–") + (f" [{percent[1]}]" if percent[1] else "")


def pair(providers: Json, key: str, unit: float) -> str:
    values = [providers.get(name, {}).get(key) for name in (FUSED, "eager")]
    return " / ".join("–" if value is None else f"{value / unit:.3g}" for value in values)


def _header(names: Sequence[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# ---- files -----------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or the one that was there before, also when the process is killed in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp gives the owner alone access
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def write(result: Json, folder: Path, image: bytes) -> list[Path]:
    """ops.json, ops.md and ops.png in `folder`."""
    text = markdown(result) + "\n![speed-ups](ops.png)\n"
    files = {"ops.json": json.dumps(result, indent=1).encode(), "ops.md": text.encode(), "ops.png": image}
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]
