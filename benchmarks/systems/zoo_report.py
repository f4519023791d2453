"""Rows of the table of all methods to text, Markdown, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.engine.report import provenance, summarise_ratios, write_files
from benchmarks.engine.work import FUSED, Json
from benchmarks.systems.step_report import bars, distances, format_sentence, seconds_cell

PLAIN = "plain torch"


def relate(by_name: Mapping[str, Json]) -> None:
    """Adds how many times faster fused is than each of the others and whether that is a loss; and to the fused row the
    same of plain torch, and its part of that one's peak memory."""
    fused, plain = by_name[FUSED], by_name[PLAIN]
    for name, row in by_name.items():
        if name != FUSED and "median_s" in fused and "median_s" in row:
            row["fused_speedup"] = row["median_s"] / fused["median_s"]
            row["loss"] = row["fused_speedup"] < 1
    if "fused_speedup" in plain:
        fused["speedup"], fused["loss"] = plain["fused_speedup"], plain["loss"]
    if "peak_bytes" in fused and "peak_bytes" in plain:
        fused["memory_of_plain"] = fused["peak_bytes"] / plain["peak_bytes"]


def _others(rows: Sequence[Json]) -> list[str]:
    """Contestants besides fused and plain torch, of any method."""
    return list(dict.fromkeys(name for row in rows for name in row["providers"] if name not in (FUSED, PLAIN)))


def _ratio(row: Json, name: str) -> float | None:
    """How many times faster fused is than this contestant."""
    fused, other = row["providers"][FUSED], row["providers"].get(name, {})
    return other["median_s"] / fused["median_s"] if "median_s" in fused and "median_s" in other else None


def _ratio_cell(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"**loss {ratio:.2f}x**" if ratio < 1 else f"{ratio:.2f}x"


def _cells(row: Json, others: Sequence[str]) -> list[str]:
    by_name = row["providers"]
    fused, plain = by_name[FUSED], by_name[PLAIN]
    return [
        row["method"],
        ", ".join("x".join(map(str, shape)) for shape in fused.get("batch", ())) or "–",
        *map(_seconds, (fused, plain)),
        _ratio_cell(_ratio(row, PLAIN)),
        *(_against(row, name) for name in others),
        " / ".join(f"{r['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in r else "–" for r in by_name.values()),
        f"{fused['memory_of_plain']:.2f}" if "memory_of_plain" in fused else "–",
        " / ".join(
            f"{100 * r['outside_convolutions']:.0f} %" if "outside_convolutions" in r else "–" for r in by_name.values()
        ),
    ]


def _seconds(row: Json | None) -> str:
    if row is None:
        return "–"
    if row["status"] != "ok":
        return f"**{row['status']}**"
    return seconds_cell(row) if "median_s" in row else "–"


def _against(row: Json, name: str) -> str:
    seconds, ratio = _seconds(row["providers"].get(name)), _ratio(row, name)
    return seconds if ratio is None else f"{seconds} {_ratio_cell(ratio)}"


def _table(rows: Sequence[Json]) -> list[str]:
    others = _others(rows)
    each = " / ".join((FUSED, PLAIN, *others))
    head = ["method", "batch", f"{FUSED}, s per step", f"{PLAIN}, s per step", "fused is faster"]
    head += [f"{name}, s per step, fused is faster" for name in others]
    head += [f"peak GiB, {each}", f"of {PLAIN}", f"outside convolutions, {each}"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(_cells(row, others)) + " |" for row in rows]


def _failures(rows: Sequence[Json]) -> list[str]:
    results = ((row["method"], r) for row in rows for r in row["providers"].values())
    return [f"**{r['status']}** {method}, {r['name']}: {r['reason']}" for method, r in results if r["reason"]]


def _losses(rows: Sequence[Json]) -> list[str]:
    ratios = ((row["method"], name, _ratio(row, name)) for row in rows for name in row["providers"] if name != FUSED)
    return [f"{method}: {ratio:.2f}x against {name}" for method, name, ratio in ratios if ratio and ratio < 1]


def _summary(rows: Sequence[Json]) -> str:
    lines = []
    for name in (PLAIN, *_others(rows)):
        if ratios := [ratio for row in rows if (ratio := _ratio(row, name))]:
            r = summarise_ratios(ratios)
            spread = f"geometric mean; {r['min']:.2f} to {r['max']:.2f}, {r['rows']} methods"
            lines.append(f"Fused is {r['geomean']:.2f}x as fast as {name} ({spread}).")
    return " ".join(lines) or "Nothing was timed on both sides."


def text(rows: Sequence[Json]) -> str:
    return "\n".join([*_table(rows), _summary(rows), *_failures(rows)])


def markdown(result: Json) -> str:
    rows = result["rows"]
    count = max((len(r["samples_s"]) for row in rows for r in row["providers"].values()), default=0)
    lines = [f"# Training steps of all methods, {result['precision']}: {result['kind']}", "", *provenance(result), ""]
    lines += [
        f"* **{FUSED}**: i2i's step on the fused operators",
        f'* **{PLAIN}**: the same step, networks and order of work with `impl="reference"`, the same operators '
        "written in plain torch. Not the published code, nor stock code written for speed",
        *_about(rows),
        "",
        f"Published defaults, but for what is listed below. Median (20th to 80th percentile) of {count} interleaved "
        "turns, each contestant in its own process. Peak: of the whole process, interpreter and libraries included "
        "(on a GPU: of torch's allocator). Outside convolutions: part of a profiled step. Before the timing, losses "
        "and gradients of the first step are compared with those in plain torch; where their distance is 0, no fused "
        "operator takes part (batch norm is torch's own) and the ratio shows the noise." + format_sentence(result),
        "",
    ]
    lines += [f"* {row['method']}: {', '.join(notes)}" for row in rows if (notes := _notes(row))]
    losses = _losses(rows)
    lines += ["", *_table(rows), "", _summary(rows), "", f"## Losses ({len(losses)})", ""]
    lines += [f"* {loss}" for loss in losses] or ["None."]
    failures = _failures(rows)
    lines += ["", f"## Failed the correctness gate or raised ({len(failures)})", ""]
    lines += [f"* {failure}" for failure in failures] or ["None."]
    compared = [
        (row["method"] if name == FUSED else f"{row['method']}, {name}", r)
        for row in rows
        for name, r in row["providers"].items()
        if name != PLAIN
    ]
    lines += ["", *distances(f"steps in {PLAIN}", compared)]
    return "\n".join([*lines, "", f"![steps]({file_name(result)}.png)", ""])


def _about(rows: Sequence[Json]) -> list[str]:
    """A line for every text about a stock contestant, with the methods that it is about."""
    methods: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, r in row["providers"].items():
            if "about" in r:
                methods.setdefault((name, r["about"]), []).append(row["method"])
    lines = (f"* **{name}** of {', '.join(of)}: {about}" for (name, about), of in methods.items())
    return [f"{line}; here in the precision of the table" for line in lines]


def _notes(row: Json) -> list[str]:
    turn = [f"mean of {row['turn']} steps, which together update all networks"] if row["turn"] > 1 else []
    return turn + [f"{name} {value}" for name, value in row["changes"].items()]


def picture(result: Json) -> bytes:
    rows = [r | {"name": f"{name}: {row['method']}"} for row in result["rows"] for name, r in row["providers"].items()]
    return bars(f"Training step, {result['precision']}", result, rows, FUSED)


def file_name(result: Json) -> str:
    """Of its files, without the ending: a table for each precision can lie in a folder."""
    return "zoo" if result["precision"] == "float32" else f"zoo_{result['precision']}"


def write(result: Json, folder: Path) -> list[Path]:
    """NAME.json, .md and .png in `folder`."""
    return write_files(folder, file_name(result), result, markdown(result), {"": picture(result)})
