"""The result to Markdown: first what holds and what does not, then each part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine.report import loss_line, provenance, write_files
from benchmarks.engine.work import EAGER, FUSED, INTO, Json
from benchmarks.proof import operators, picture
from benchmarks.proof.part import OK
from benchmarks.proof.picture import milliseconds
from benchmarks.proof.targets import MISSED, NOT_MEASURED
from benchmarks.systems.stock import OURS

NAME = "proof"  # of the files


def write(result: Json, folder: Path) -> list[Path]:
    """proof.json, .md and .png in `folder`."""
    return write_files(folder, NAME, result, markdown(result), {"": picture.draw(result)})


def markdown(result: Json) -> str:
    parts = result["parts"]
    lines = [f"# Proof: {result['kind']}", "", verdict(result), "", *_targets(result["rows"]), ""]
    lines += ["## Parts", "", *_parts(parts), "", "## Where", "", *provenance(result), "", *_device(result), ""]
    for name, section in SECTIONS.items():
        if name in parts and (body := section(parts[name])):
            lines += [f"## {name.capitalize()}", "", *body, ""]
    return "\n".join([*lines, f"![operators against a copy, and steps]({NAME}.png)", ""])


def verdict(result: Json) -> str:
    """What the exit status says, in a sentence."""
    by_status = {status: [c for c in result["rows"] if c["status"] == status] for status in (MISSED, NOT_MEASURED)}
    bad = [f"{name} ({part['status']})" for name, part in result["parts"].items() if part["status"] != OK]
    held = len(result["rows"]) - sum(map(len, by_status.values()))
    text = f"**{held} of {len(result['rows'])} targets hold, {len(by_status[MISSED])} do not, "
    text += f"{len(by_status[NOT_MEASURED])} were not measured.**"
    return text + (f" Parts that did not end well: {', '.join(bad)}." if bad else " Every part ended well.")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _targets(checks: Sequence[Json]) -> list[str]:
    rows = []
    for check in checks:
        told = "; ".join(filter(None, (check["of"], check["reason"])))
        status = check["status"] if check["status"] != MISSED else f"**{MISSED}**"
        rows.append([check["target"], check["wanted"], check.get("text", "–"), status, told])
    return _table(["target", "wanted", "found", "result", "of what, or why not"], rows)


def _parts(parts: Json) -> list[str]:
    rows = [
        [
            name,
            p["status"] if p["status"] == OK else f"**{p['status']}**",
            f"{p['seconds']:.0f} of {p['limit_s']:.0f}",
            p["reason"],
        ]
        for name, p in parts.items()
    ]
    return _table(["part", "result", "seconds", "why"], rows)


def _device(result: Json) -> list[str]:
    lines = []
    before, after = result["machine"].get("gpu"), result["gpu_after"]
    if before and after:
        told = [f"{name} {value} → {after.get(name, '?')}" for name, value in before.items() if name in CHANGING]
        lines += [
            f"CUDA {result['versions']['cuda']}. Before → after: {', '.join(told) or 'nvidia-smi says nothing'}.",
            "",
        ]
    kernels = [line for line in result["cuda"] if line.startswith(" ")]
    spilled = [line for line in kernels if " 0 bytes spilled" not in line]
    lines += [result["cuda"][0] + (f"; {len(spilled)} of them spill registers" if kernels else "")]
    return lines + [f"* {line.strip()}" for line in spilled]


CHANGING = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


# ---- parts -----------------------------------------------------------------------------------------------------------


def _tests(part: Json) -> list[str]:
    runs = part.get("runs", {})
    rows = [[n, *(str(r[k]) for k in ("passed", "failed", "skipped")), f"{r['seconds']:.0f}"] for n, r in runs.items()]
    failures = [f"* {f['test']}: {f['why']}" for run in runs.values() for f in run["failures"]]
    return [*_table(["kernels", "passed", "failed", "skipped", "s"], rows), "", *failures] if rows else []


def _sanitizer(part: Json) -> list[str]:
    tools = part.get("tools", {})
    rows = [[n, str(t["errors"]), str(t["warnings"]), t["calls"], f"{t['seconds']:.0f}"] for n, t in tools.items()]
    shown = [f"    {line}" for tool in tools.values() for line in tool["lines"]]
    return [*_table(["tool", "errors", "warnings", "calls", "s"], rows), "", *shown] if rows else []


def _operators(part: Json) -> list[str]:
    rows = [_operator(row) for row in part.get("rows", [])]
    if not rows:
        return []
    head = ["case", "mode", "fused, µs", "% of copy", EAGER, "best stock code", "torch.compile", "host, µs"]
    about = (
        "Median per call, on a CUDA device its own time with a cold L2 cache; how many times faster fused is than "
        "eager code, than the fastest of the stock forms and than the faster of what torch.compile makes of them. Of "
        "copy: the time of a copy that moves the bytes which any implementation must move, over fused's. Host: an "
        "eager call as the program sees it, fused / eager."
    )
    summary = operators.summary(part)
    lines = [about, "", *_table(head, rows), ""]
    lines += [f"* {loss_line(loss)}" for table in summary.values() for loss in table["losses"]]
    failures = [f for table in summary.values() for f in table["failures"]]
    return lines + [f"* {f['status']} {f['provider']}: {f['row']}: {f['reason']}" for f in failures]


def _operator(row: Json) -> list[str]:
    by_name = row["providers"]
    fused = by_name.get(FUSED, {})
    timed = {name: r for name, r in by_name.items() if "fused_speedup" in r}
    compiled = [r["fused_speedup"] for name, r in timed.items() if name.startswith("torch.compile")]
    stock = [r["fused_speedup"] for name, r in timed.items() if not name.startswith("torch.compile") and name != INTO]
    eager = timed.get(EAGER, {}).get("fused_speedup")
    host = [by_name.get(name, {}).get("wall_us_per_call") for name in (FUSED, EAGER)]
    return [
        row["label"],
        row["mode"],
        f"{fused['median_ms'] * 1e3:.1f}" if "median_ms" in fused else f"**{fused.get('status', 'error')}**",
        f"{fused['percent_of_copy']:.0f}" if "percent_of_copy" in fused else "–",
        _times(eager),
        _times(min(stock, default=None)),
        _times(min(compiled, default=None)),
        " / ".join(f"{us:.0f}" for us in host) if all(host) else "–",
    ]


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.2f}x" if ratio >= 1 else f"**loss {ratio:.2f}x**"


def _launches(part: Json) -> list[str]:
    calls = part.get("calls", [])
    rows = [[c["name"], c["what"], f"{c['host_us']:.1f}", str(c.get("launches", "–"))] for c in calls]
    if not rows:
        return []
    about = (
        f'`impl="auto"` takes {part["impl"]}. Host time of a call on tiny tensors, the least of {part["host_repeats"]} '
        f"times {part['host_calls']} calls; and what the device runs for one: kernels, copies and fills. By the clock "
        f"of the operator table a fill of one number takes {part['fill_us']:.2g} µs: nothing there is quicker."
    )
    return [about, "", *_table(["call", "mode", "host, µs", "launches"], rows)]


def _steps(part: Json) -> list[str]:
    lines = []
    for system, rows in part.get("systems", {}).items():
        ours = next((row.get("median_s") for row in rows if row["name"] == OURS), None)
        lines += [f"### {system}, {part['size']} x {part['size']}, batch 1", ""]
        head = [
            "contestant",
            "ms per step",
            "ours is faster",
            "peak GiB",
            "reserved GiB",
            "outside convolutions",
            "launches",
            "first step s",
        ]
        lines += [*_table(head, [_step(row, ours) for row in rows]), ""]
        lines += [f"* **{row['status']}** {row['name']}: {row['reason']}" for row in rows if row["reason"]]
        for row in rows:
            lines += [f"* {row['name']}: {line}" for line in row.get("graphs", ())]
        lines.append("")
    return lines


def _step(row: Json, ours: float | None) -> list[str]:
    timed = "median_s" in row
    return [
        row["name"],
        f"{milliseconds(row['median_s'])} ({milliseconds(row['p20_s'])}–{milliseconds(row['p80_s'])})"
        if timed
        else f"**{row['status']}**",
        _times(row["median_s"] / ours) if timed and ours and row["name"] != OURS else "–",
        *(f"{row[key] / 2**30:.2f}" if key in row else "–" for key in ("peak_bytes", "reserved_bytes")),
        f"{100 * row['outside_convolutions']:.0f} %" if "outside_convolutions" in row else "–",
        str(row.get("launches", "–")),
        f"{row['first_step_s']:.1f}" if "first_step_s" in row else "–",
    ]


def _training(part: Json) -> list[str]:
    rows = [
        [
            r["precision"],
            str(r["steps"]),
            *(f"{r[key]:.2f}" for key in ("start", "end", "untouched")),
            f"{r['seconds']:.0f}",
        ]
        for r in part.get("runs", [])
    ]
    head = ["CUT on the sample photographs", "steps", "held-out PSNR before, dB", "after", "the input as it is", "s"]
    return _table(head, rows) if rows else []


SECTIONS = {
    "tests": _tests,
    "sanitizer": _sanitizer,
    "operators": _operators,
    "launches": _launches,
    "steps": _steps,
    "training": _training,
}
