"""Where a CUT step is measured for its cost curves, and what the points not measured yet will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.engine.work import Json
from benchmarks.systems.child import BLOCK, WARM


class Point(NamedTuple):
    """A CUT step: side of the images in pixels, images of a batch, patches of an image, rows of the bank of negatives
    (0: none, the negatives are the image's other patches)."""

    side: int = 256
    batch: int = 1
    patches: int = 256
    bank: int = 0

    @property
    def label(self) -> str:
        bank = f", bank {self.bank}" if self.bank else ""
        return f"{self.batch} x {self.side} x {self.side}, {self.patches} patches{bank}"

    def settings(self) -> Json:
        """Of CUT's configuration."""
        bank = {"negatives": "external", "queue_size": self.bank} if self.bank else {}
        return {"crop_size": self.side, "batch_size": self.batch, "num_patches": self.patches} | bank


# What is changed along each axis; the others stay at the published defaults. More than 4096 patches have no room in the
# smallest tapped map of 256 x 256.
AXES = {
    "side": (128, 256, 512, 1024),
    "batch": (1, 2, 4, 8, 16),
    "patches": (64, 256, 1024, 4096),
    "bank": (1024, 4096, 16384, 65536),
}
# Multiplications of a step, to foretell its time from another's: convolutions for each pixel of a batch (torch's
# counter for the published form), and products for each pair of a patch and a negative: two sources, five layers, width
# 256, forward and back, and as much again because their logits go through memory.
PER_PIXEL, PER_PAIR = 1.0e7, 2 * 5 * 256 * 2 * 2
# Bytes, to foretell memory: maps for each pixel (published form, float32), logits and their gradient for each pair, and
# of each row of a bank its queues and what is made of them; interpreter, libraries and weights besides.
PIXEL_BYTES, PAIR_BYTES, ROW_BYTES, FIXED_BYTES = 45_000, 2 * 5 * 4 * 4, 2 * 5 * 256 * 4 * 2, 2**29
SPARE = 0.85  # of the memory that is free: predictions are rough, and other processes grow


def points(axes: Mapping[str, Sequence[int]] = AXES) -> dict[Point, list[str]]:
    """Each once, the cheapest first, with the axes that it lies on."""
    found: dict[Point, list[str]] = {}
    for axis, values in axes.items():
        for value in values:
            found.setdefault(Point(**{axis: value}), []).append(axis)
    return dict(sorted(found.items(), key=lambda item: work(item[0])))


def _pairs(point: Point) -> int:
    return point.batch * point.patches * (point.bank or point.patches)


def _pixels(point: Point) -> int:
    return point.batch * point.side**2


def work(point: Point) -> float:
    """Multiplications, roughly."""
    return PER_PIXEL * _pixels(point) + PER_PAIR * _pairs(point)


def room(point: Point) -> float:
    """Bytes, roughly, of the form that keeps everything."""
    return PIXEL_BYTES * _pixels(point) + PAIR_BYTES * _pairs(point) + ROW_BYTES * point.bank


class Forecast(NamedTuple):
    """What a point will take: seconds per step and peak bytes of each contestant, seconds of everything."""

    step_s: dict[str, float]
    peak_bytes: dict[str, float]
    seconds: float
    rounds: int


SLOW_S, SLOW_ROUNDS = 10.0, 1  # where a step takes longer, one turn follows the first step: minutes are dear


def forecast(point: Point, rows: Sequence[Json], names: Sequence[str], rounds: int, device: str) -> Forecast | None:
    """From the largest point measured so far, each contestant for itself. None before the first."""
    known = [(Point(**row["point"]), row) for row in rows if row["providers"]]
    step_s, peak = {}, {}
    for name in names:
        for other, row in sorted(known, key=lambda item: work(item[0]), reverse=True):
            found = row["providers"].get(name, {})
            if "median_s" in found and "peak_bytes" in found:
                step_s[name] = found["median_s"] * work(point) / work(other)
                held = found.get("reserved_bytes", found["peak_bytes"])
                peak[name] = FIXED_BYTES + max(0, held - FIXED_BYTES) * room(point) / room(other)
                break
    if not step_s:
        return None
    rounds = turns(rounds, max(step_s.values()))
    start = max(row["start_s"] for _, row in known)
    return Forecast(step_s, peak, start + steps(rounds, device) * sum(step_s.values()), rounds)


def turns(rounds: int, step_s: float) -> int:
    return min(rounds, SLOW_ROUNDS) if step_s > SLOW_S else rounds


def steps(rounds: int, device: str) -> int:
    """Of a contestant at a point."""
    return 1 + WARM[device] + rounds * BLOCK[device]


def free_bytes(device: torch.device) -> float:
    """Of the memory that `peak_bytes` counts, for all contestants together; infinite where the system does not tell."""
    if device.type == "cuda":
        return SPARE * torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return float("inf")
    return SPARE * 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])


def groups(predicted: Mapping[str, float], names: Sequence[str], free: float) -> tuple[list[list[str]], dict[str, str]]:
    """(contestants that run at the same time, one group after the other; why the others do not fit). All in turn where
    there is memory for all of them, else one by one."""
    too_large = {name: size for name in names if (size := predicted.get(name, 0)) > free}
    fitting = [name for name in names if name not in too_large]
    left = {name: f"predicted {size / 2**30:.1f} GiB, {free / 2**30:.1f} free" for name, size in too_large.items()}
    if sum(predicted.get(name, 0) for name in fitting) <= free:
        return ([fitting] if fitting else []), left
    return [[name] for name in fitting], left
