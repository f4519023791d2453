"""A suite's rows to a result: summary, JSON, Markdown, pictures, written atomically.

In the JSON contestants are "providers", their name in the first version of the schema.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.engine import plot
from benchmarks.engine.machine import SHARED
from benchmarks.engine.suite import Suite, row_label
from benchmarks.engine.work import EAGER, FUSED, INTO, Json
from i2i.files import write_atomically


def summarise(suite: Suite, rows: Sequence[Json]) -> Json:
    """Ratios baseline / fused by each of the suite's groups; losses; failures."""
    groups: dict[str, dict[str, list[float]]] = {}
    losses, failures = [], []
    for keys in suite.groups:
        first = list(dict.fromkeys(row[keys[0]] for row in rows))  # of a kind together, kinds in the order of the rows
        for row in sorted(rows, key=lambda row: first.index(row[keys[0]])):
            for name, r in row["providers"].items():
                if "fused_speedup" in r:
                    group = " ".join(row[key] for key in keys)
                    groups.setdefault(group, {}).setdefault(name, []).append(r["fused_speedup"])
    for row in rows:
        where = f"{row_label(row)} {row['mode']}"
        if "error" in row:
            failures.append({"row": where, "provider": "", "status": "error", "reason": row["error"]})
        for name, r in row["providers"].items():
            if r.get("loss"):
                losses.append({"row": where, "baseline": name, "ratio": r["fused_speedup"], "noisy": row["noisy"]})
            if r["status"] in ("FAIL", "error"):
                failures.append({"row": where, "provider": name, "status": r["status"], "reason": r["reason"]})
    speedups = {g: {n: summarise_ratios(v) for n, v in by.items()} for g, by in groups.items()}
    return {"speedups": speedups, "losses": losses, "failures": failures}


def summarise_ratios(ratios: Sequence[float]) -> Json:
    """Geometric mean and range."""
    return {"geomean": statistics.geometric_mean(ratios), "min": min(ratios), "max": max(ratios), "rows": len(ratios)}


def loss_line(loss: Json) -> str:
    noisy = ", noisy" if loss["noisy"] else ""
    return f"loss {loss['ratio']:.2f}x against {loss['baseline']}: {loss['row']}{noisy}"


# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(suite: Suite, result: Json, pictures: Iterable[str] = ()) -> str:
    """`pictures`: names of those that lie beside, apart from the speed-ups'."""
    rows, summary = result["rows"], result["summary"]
    lines = [f"# {suite.title}: {result['kind']}", "", *provenance(result), ""]
    lines += [f"* {note}" for note in suite.notes.get(result["device"], ())]
    lines += ["", "Contestants:", ""]
    lines += [f"* **{name}**: {about}" for name, about in suite.about.items()]
    lines += ["", "## How many times faster than", ""]
    lines += ["Geometric mean over rows (min to max, rows); below 1 fused is slower.", ""]
    lines += _speedup_table(suite, summary["speedups"])
    lines += _threads(rows)
    lines += ["", f"## Losses ({len(summary['losses'])})", ""]
    lines += [f"* {loss_line(loss)}" for loss in summary["losses"]] or ["None."]
    lines += ["", f"## Failed the correctness gate or raised ({len(summary['failures'])})", ""]
    lines += [f"* {_failure_line(failure)}" for failure in summary["failures"]] or ["None."]
    lines += ["", "## Rows", "", f"{suite.legend} {_legend(suite, result['device'])}"]
    for operator in dict.fromkeys(row["operator"] for row in rows):
        mine = [row for row in rows if row["operator"] == operator]
        lines += ["", f"### {operator}", "", *_row_table(suite, mine, result["device"])]
    lines += ["", f"![speed-ups]({suite.name}.png)", ""]
    for name in pictures:
        lines += [f"![{name}]({suite.name}_{name}.png)", ""]
    return "\n".join(lines)


def thread_counts(rows: Sequence[Json]) -> list[str]:
    """More than one, of all rows that have several."""
    found = {n for row in rows for n in row.get("scaling", {}).get("threads", {}) if n != "1"}
    return sorted(found, key=int)


def _threads(rows: Sequence[Json]) -> list[str]:
    """A section on how fused scales; nothing where no row was measured with several numbers of threads."""
    counts, rows = thread_counts(rows), [row for row in rows if row.get("scaling")]
    if not counts:
        return []
    lines = ["", "## From one thread to more", ""]
    lines.append(
        "Parallel efficiency of fused, t(1) / (n t(n)): 1 is perfect, 1 / n no gain. Geometric mean over rows (min to "
        "max, rows)."
    )
    lines += ["", *_header(["rows", *(f"{n} threads" for n in counts), "noisy rows"])]
    for group in dict.fromkeys((row["operator"], row["mode"]) for row in rows):
        mine = [row for row in rows if (row["operator"], row["mode"]) == group]
        found = [summarise_ratios([row["scaling"]["threads"][n]["efficiency"] for row in mine]) for n in counts]
        cells = [f"**{r['geomean']:.2f}** ({r['min']:.2f} to {r['max']:.2f}, {r['rows']})" for r in found]
        lines.append(_line([" ".join(group), *cells, str(sum(row["scaling"]["noisy"] for row in mine))]))
    slower = [line for row in rows if (line := _slower(row))]
    lines += ["", f"Not faster than with one thread ({len(slower)}):", "", *([f"* {s}" for s in slower] or ["None."])]
    return lines


def _slower(row: Json) -> str:
    """Of a row that gains nothing from some number of threads."""
    ratios = {n: r["efficiency"] * int(n) for n, r in row["scaling"]["threads"].items() if n != "1"}
    lost = ", ".join(f"{ratio:.2f}x with {n}" for n, ratio in ratios.items() if ratio <= 1)
    return lost and f"{row_label(row)} {row['mode']}: {lost}{', noisy' if row['scaling']['noisy'] else ''}"


def _efficiency(row: Json, counts: Sequence[str]) -> str:
    threads = row.get("scaling", {}).get("threads")
    if not threads:
        return "–"
    text = " / ".join(f"{threads[n]['efficiency']:.2f}" for n in counts)
    return text + (", **noisy**" if row["scaling"]["noisy"] else "")


def _failure_line(failure: Json) -> str:
    return f"**{failure['status']}** {failure['provider']}: {failure['row']}: {failure['reason']}"


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
        + f". torch {versions['torch']}, triton {versions['triton']}, Python {versions['python']}"
        + (f", C++ operators at {versions['kernels_isa']}." if versions["kernels_isa"] else "."),
        "",
        f"{state}{result['date']}, `{result['command']}`"
        + (", **interrupted: only the rows below were measured**" if result["interrupted"] else ""),
    ]
    if result["other_load"] is not None and result["other_load"] > SHARED:
        lines += [
            "",
            f"**Shared machine**: other processes used {result['other_load']:.2f} cores on average; figures are noisy.",
        ]
    return lines


def _speedup_table(suite: Suite, speedups: Json) -> list[str]:
    names = [name for name in suite.about if any(name in by_name for by_name in speedups.values())]
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


def _legend(suite: Suite, device: str) -> str:
    into = ", in brackets of the forward into a given output" if INTO in suite.about else ""
    wall = " `wall` is microseconds per eager call as the host sees it." if device == "cuda" else ""
    return (
        "Milliseconds per call: median (20th to 80th percentile). After a baseline's time: how many times faster fused "
        f"is. `{suite.column[0]}`: of fused{into}. `peak MiB`: fused / eager. `rounds`: how many were run, and in how "
        "many of them other processes took our cores: those are left out, unless fewer than half "
        f"of those asked for were undisturbed (**noisy**).{wall}"
    )


def _row_table(suite: Suite, rows: Sequence[Json], device: str) -> list[str]:
    names = [n for n in suite.about if n not in (FUSED, INTO) and any(n in row["providers"] for row in rows)]
    compiled = any("compile_seconds" in r for row in rows for r in row["providers"].values())
    counts = thread_counts(rows)
    extra = ["compile s"] * compiled + ["wall fused / eager"] * (device == "cuda")
    extra += [f"efficiency, {' / '.join(counts)} threads"] * bool(counts)
    heads = ["case", "mode", "fused", suite.column[0], *names, "peak MiB", *extra, "rounds"]
    lines = _header(heads)
    for row in rows:
        by_name = row["providers"]
        case = [row_label(row).removeprefix(f"{row['operator']} "), row["mode"]]
        if "error" in row:
            lines.append(_line([*case, "**error**", *["–"] * (len(heads) - 3)]))
            continue
        tail = []
        if compiled:
            seconds = [f"{r['compile_seconds']:.0f}" for r in by_name.values() if "compile_seconds" in r]
            tail.append(", ".join(seconds) or "–")
        if device == "cuda":
            tail.append(pair(by_name, "wall_us_per_call", 1))
        if counts:
            tail.append(_efficiency(row, counts))
        lines.append(
            _line(
                [
                    *case,
                    cell(by_name.get(FUSED)),
                    _figure(by_name, suite.column[1]),
                    *(cell(by_name.get(name)) for name in names),
                    pair(by_name, "peak_bytes", 2**20),
                    *tail,
                    f"{row['rounds']}, {row['rounds_disturbed']} disturbed{', **noisy**' if row['noisy'] else ''}",
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


def _figure(by_name: Json, key: str) -> str:
    values = [f"{value:.0f}" if (value := by_name.get(name, {}).get(key)) else "" for name in (FUSED, INTO)]
    return (values[0] or "–") + (f" [{values[1]}]" if values[1] else "")


def pair(by_name: Json, key: str, unit: float) -> str:
    values = [by_name.get(name, {}).get(key) for name in (FUSED, EAGER)]
    return " / ".join("–" if value is None else f"{value / unit:.3g}" for value in values)


def _header(names: Sequence[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# ---- screen and files ------------------------------------------------------------------------------------------------


def print_summary(suite: Suite, result: Json) -> None:
    rows, summary = result["rows"], result["summary"]
    print(f"{result['kind']}, {suite.name}, {len(rows)} rows in {result['seconds']:.0f} s")
    print("fused is so many times faster than (geometric mean, min to max, rows):")
    for group in dict.fromkeys(" ".join(row[key] for key in suite.groups[0]) for row in rows):
        for name, r in summary["speedups"].get(group, {}).items():
            print(f"  {group:30} {name:30} {r['geomean']:6.2f}x ({r['min']:.2f} to {r['max']:.2f}, {r['rows']})")
    for loss in summary["losses"]:
        print(f"  {loss_line(loss)}")
    for failure in summary["failures"]:
        print(f"  {failure['status']} {failure['provider']}: {failure['row']}: {failure['reason']}")
    noisy = sum(row["noisy"] for row in rows)
    if noisy:
        print(f"other processes disturbed {noisy} of {len(rows)} rows; measure again on a quiet machine")


def write(suite: Suite, result: Json, folder: Path) -> list[Path]:
    """NAME.json, .md and .png, and the suite's other pictures as NAME_PICTURE.png, in `folder`."""
    pictures = suite.pictures(result)
    text = markdown(suite, result, pictures)
    return write_files(folder, suite.name, result, text, {"": plot.speedups(suite, result), **pictures})


def write_files(folder: Path, name: str, result: Json, text: str, pictures: Mapping[str, bytes]) -> list[Path]:
    """NAME.json, NAME.md, NAME.png for the picture "" and NAME_PICTURE.png for others; each whole, or as it was."""
    files = {f"{name}.json": json.dumps(result, indent=1).encode(), f"{name}.md": text.encode()}
    files |= {f"{name}_{picture}.png" if picture else f"{name}.png": image for picture, image in pictures.items()}
    for file, data in files.items():
        write_atomically(folder / file, data)
    return [folder / file for file in files]
