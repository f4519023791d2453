"""What the foreign benchmark found, to text and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.engine.report import provenance, write_files
from benchmarks.engine.work import Json
from benchmarks.outside import compare, lines
from benchmarks.outside.trainers import TRAINERS
from benchmarks.systems.step_report import seconds_cell

TIMED = ("contestant", "s per step", "than stock", "than published float32", "peak GiB", "gradients from float64")
COMPARED = ("line", "losses", "gradients", f"losses, {compare.STEPS} steps", f"weights, {compare.STEPS} steps", "files")


def write(result: Json, folder: Path) -> list[Path]:
    """foreign.json and .md in `folder`; each whole, or as it was."""
    return write_files(folder, "foreign", result, markdown(result), {})


def text(row: Json) -> str:
    """Of one trainer, for the screen."""
    out = [heading(row)]
    if row["reason"]:
        out.append(f"{row['status']}: {row['reason']}")
    out += [f"{line}: {reason}" for line, reason in failures(row)]
    for precision, rows in row["tables"].items():
        out.append(f"{precision}:")
        for found in rows.values():
            name, seconds, *ratios, _, _ = cells(found)
            out.append(f"  {name:32} {seconds:28} {ratios[0]:>8} {ratios[1]:>8}")
        out += notes(rows)
    return "\n".join(out)


def heading(row: Json) -> str:
    trainer = TRAINERS[row["trainer"]]
    side = " x ".join([str(row["size"])] * (3 if trainer.voxels else 2))
    return f"{trainer.title}, {side}, batch {row['batch']}"


def failures(row: Json) -> Iterator[tuple[str, str]]:
    """Lines whose step in float64 is not stock's, and why."""
    for line, found in row["comparison"].items():
        reason = found.get("error") or found["reason"]
        if reason:
            yield line, reason


def failed(row: Json) -> bool:
    """Whether something of ours was wrong or did not run; what stock itself cannot do is no failure."""
    if row["status"] != "ok" or any(line != lines.LAST for line, _ in failures(row)):
        return True
    timed = [found for rows in row["tables"].values() for found in rows.values()]
    return any(found["status"] != "ok" and not stock(found["line"]) for found in timed)


def stock(line: str) -> bool:
    return line in (lines.STOCK, lines.KEPT, lines.LAST)


def cells(row: Json) -> list[str]:
    status = {"error": "does not run", "ok": "not timed"}.get(row["status"], str(row["status"]))
    seconds = seconds_cell(row) if "median_s" in row else status
    name = row["name"] if row["status"] == "ok" else f"**{row['name']}**"
    ratios = [f"{row[key]:.2f}x" if row.get(key) else "–" for key in ("than_stock", "than_published")]
    peak = f"{row['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in row else "–"
    far = f"{max(row['gradient_distance'].values()):.1e}" if "gradient_distance" in row else "–"
    return [name, seconds, *ratios, peak, far]


def notes(rows: Json) -> list[str]:
    return [f"  {found['name']}: {found['reason']}" for found in rows.values() if found["reason"]]


def markdown(result: Json) -> str:
    out = [f"# Training steps of published trainers: {result['kind']}", "", *provenance(result), "", *explained(result)]
    for row in result["rows"]:
        out += section(row)
    out += [*(f"* {line}" for line in result["left"]), ""] if result["left"] else []
    return "\n".join(out)


def explained(result: Json) -> list[str]:
    """What the tables hold, once for all of them."""
    seen = {found["line"] for row in result["rows"] for rows in row["tables"].values() for found in rows.values()}
    rounds = result["rounds"]
    about = [f"* **{name}**: {line.about}" for name, line in lines.LINES.items() if name in seen]
    return [
        f"Median (20th to 80th percentile) of {rounds} interleaved steps, each contestant in a process of its own. "
        "Times faster than stock in the same precision, and than the published form in float32. Under bfloat16 all but "
        f"`{lines.PRECISION}` run with torch.autocast around the forward parts of the step. Peak: of the "
        "whole process, interpreter and libraries included (on a GPU: of torch's allocator). "
        "Gradients from float64: largest relative distance, in the 2-norm, of a network's gradients in the first step; "
        "a contestant of ours may have twice the error that stock has in that precision.",
        "",
        f"Before anything is timed, {compare.STEPS} steps in float64 are compared with stock's: losses and gradients "
        f"of the first may differ by {compare.EXACT:.0e}, losses and weights after all by {compare.AFTER:.0e}, "
        "relative; checkpoints are exchanged both ways.",
        "",
        *about,
        "",
    ]


def section(row: Json) -> list[str]:
    out = [f"## {heading(row)}", "", f"A step: {TRAINERS[row['trainer']].about}.", ""]
    if row["reason"]:
        out += [f"**{row['status']}**: {row['reason']}", ""]
    if row["comparison"]:
        out += [*_header(COMPARED), *(_line(compared(*item)) for item in row["comparison"].items()), ""]
        if wrong := list(failures(row)):
            out += [*(f"* **{line}**: {reason}" for line, reason in wrong), ""]
    wrong = {net: d for net, d in row.get("unmended", {}).get("distance", {}).items() if d > compare.EXACT}
    if wrong:
        found = ", ".join(f"{net} {value:.2g}" for net, value in wrong.items())
        out += [
            f"Stock's own gradients are wrong here ({found}, relative): torch's instance norm on a CPU at batch 1, "
            "where the incoming gradient is channels last. It is compared with stock that gets contiguous ones.",
            "",
        ]
    for precision, rows in row["tables"].items():
        out += [f"### {precision}", "", *_header(TIMED), *(_line(cells(found)) for found in rows.values()), ""]
        if told := notes(rows):
            out += [*(f"* {note.strip()}" for note in told), ""]
    return out + reports(row)


def compared(line: str, found: Json) -> list[str]:
    if "error" in found:
        return [line, "does not run", *["–"] * 4]
    figures = [found["losses"], max(found["gradients"].values()), found["later_losses"], max(found["weights"].values())]
    return [line, *(f"{figure:.1e}" for figure in figures), found["checkpoints"] or "equal"]


def reports(row: Json) -> list[str]:
    """Of fuse, for every network; folded, for they are long."""
    by_net = row["comparison"].get(lines.ACCELERATE, {}).get("report", {})
    out = []
    for net, report in by_net.items():
        head, *rest = report.splitlines()
        out += ["<details>", f"<summary>{net}: {head}</summary>", "", "```", *rest, "```", "", "</details>", ""]
    return out


def _header(names: Sequence[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"
