"""A suite's rows to a result: summary, JSON, Markdown, pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.engine import plot
from benchmarks.engine.report import cell, loss_line, pair, provenance, summarise_ratios, write_atomically
from benchmarks.engine.suite import Json, Suite
from benchmarks.ops.norm import FUSED


def summarise(suite: Suite, rows: Sequence[Json]) -> Json:
    """Ratios baseline / fused by the suite's groups; losses; failures."""
    groups: dict[str, dict[str, list[float]]] = {}
    losses, failures = [], []
    for row in rows:
        where = f"{row['label']} {row['mode']}"
        for name, r in row["providers"].items():
            if "fused_speedup" in r:
                group = " ".join(row[key] for key in suite.groups)
                groups.setdefault(group, {}).setdefault(name, []).append(r["fused_speedup"])
                if r["loss"]:
                    losses.append({"row": where, "baseline": name, "ratio": r["fused_speedup"], "noisy": row["noisy"]})
            if r["status"] in ("FAIL", "error"):
                failures.append({"row": where, "provider": name, "status": r["status"], "reason": r["reason"]})
    speedups = {g: {n: summarise_ratios(v) for n, v in by.items()} for g, by in groups.items()}
    return {"speedups": speedups, "losses": losses, "failures": failures}


def markdown(suite: Suite, result: Json, pictures: Iterable[str] = ()) -> str:
    """`pictures`: names of those that lie beside, apart from the speed-ups'."""
    summary = result["summary"]
    lines = [f"# {suite.title}: {result['kind']}", "", *provenance(result), ""]
    lines += [f"* **{name}**: {about}" for name, about in suite.about.items()]
    lines += ["", suite.legend, "", f"## Losses ({len(summary['losses'])})", ""]
    lines += [f"* {loss_line(loss)}" for loss in summary["losses"]]
    lines += [] if summary["losses"] else ["None."]
    lines += ["", f"## Failed the correctness gate or raised ({len(summary['failures'])})", ""]
    lines += [f"* **{f['status']}** {f['provider']}: {f['row']}: {f['reason']}" for f in summary["failures"]]
    lines += [] if summary["failures"] else ["None."]
    for operator in (n for n in suite.operators if any(row["operator"] == n for row in result["rows"])):
        lines += ["", f"## {operator}", "", *_table(suite, [r for r in result["rows"] if r["operator"] == operator])]
    lines += ["", f"![speed-ups]({suite.name}.png)", ""]
    for name in pictures:
        lines += [f"![{name}]({suite.name}_{name}.png)", ""]
    return "\n".join(lines)


def _table(suite: Suite, rows: Sequence[Json]) -> list[str]:
    names = [n for n in suite.about if n != FUSED and any(n in row["providers"] for row in rows)]
    heading, figure = suite.column
    heads = ["case", "mode", "fused", heading, *names, "peak MiB, fused / eager", "compile s", "rounds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        providers = row["providers"]
        seconds = [f"{r['compile_seconds']:.0f}" for r in providers.values() if "compile_seconds" in r]
        value = providers[FUSED].get(figure)
        cells = [
            row["label"].removeprefix(f"{row['operator']} "),
            row["mode"],
            cell(providers[FUSED]),
            f"{value:.0f}" if value else "–",
            *(cell(providers.get(n)) for n in names),
            pair(providers, "peak_bytes", 2**20),
            ", ".join(seconds) or "–",
            f"{row['rounds']}, {row['rounds_disturbed']} disturbed",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def print_summary(suite: Suite, result: Json) -> None:
    summary = result["summary"]
    print(f"{result['kind']}, {suite.name}, {len(result['rows'])} rows in {result['seconds']:.0f} s")
    print("fused is so many times faster than (geometric mean, min to max):")
    for group, by_name in summary["speedups"].items():
        parts = [f"{n} {r['geomean']:.2f}x ({r['min']:.2f} to {r['max']:.2f})" for n, r in by_name.items()]
        print(f"  {group}: " + ", ".join(parts))
    for loss in summary["losses"]:
        print(f"  loss {loss['ratio']:.2f}x against {loss['baseline']}: {loss['row']}")
    for f in summary["failures"]:
        print(f"  {f['status']} {f['provider']}: {f['row']}: {f['reason']}")


def write(suite: Suite, result: Json, folder: Path) -> list[Path]:
    """NAME.json, .md and .png, and the suite's other pictures as NAME_PICTURE.png, in `folder`."""
    pictures = suite.pictures(result)
    files = {
        f"{suite.name}.json": json.dumps(result, indent=1).encode(),
        f"{suite.name}.md": markdown(suite, result, pictures).encode(),
        f"{suite.name}.png": plot.speedups(suite, result),
        **{f"{suite.name}_{name}.png": image for name, image in pictures.items()},
    }
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in files]
