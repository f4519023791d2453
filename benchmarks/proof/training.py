"""A short training run through the public trainer, which has to learn: CUT on the sample photographs, whose held-out
parts have a known answer."""

from __future__ import annotations

import csv
import time

from benchmarks.engine.work import Json
from benchmarks.proof.child import Answers
from benchmarks.proof.part import Asked, NotHere, OutOfTime
from benchmarks.proof.processes import measured_apart
from i2i.errors import UsageError
from i2i.methods.cut import CUTConfig
from i2i.training.loop import train

# dB that the held-out score has to rise by in 300 steps of the sample run. On a CPU it rose by 7.3, 5.4, 6.5 and 7.6 in
# float32 (seeds 0 to 3), by 7.4 and 6.8 in bfloat16 (seeds 0 and 1).
MARGIN = 3.0
# 0.99: of 300 steps an average with the sample run's own decay of 0.998 is for one half the untrained network.
SETTINGS = CUTConfig.SAMPLE | {"ema": 0.99}


def run(asked: Asked, found: Json) -> None:
    measured_apart("training", asked, found)
    short = [f"{row['precision']} by {row['rise']:.2f} dB" for row in found["runs"] if not row["rise"] >= MARGIN]
    if short:
        raise AssertionError(f"the held-out score rose in {', '.join(short)}, want {MARGIN:g} dB")


# ---- in the child ----------------------------------------------------------------------------------------------------


def measure(asked: Asked, out: Answers) -> None:
    for precision in asked.sizes["precisions"]:
        if time.monotonic() > asked.until:
            raise OutOfTime(f"before {precision}")
        out.row("runs", {"precision": precision} | trained(precision, asked))


def trained(precision: str, asked: Asked) -> Json:
    steps = asked.sizes["steps"]
    settings = SETTINGS | {"precision": precision, "steps": steps, "save_every": steps, "sample_every": steps}
    settings |= asked.sizes["settings"]
    folder = asked.folder / f"run_{precision}"
    began = time.monotonic()
    try:
        result = train("cut", CUTConfig(**settings), folder, device=asked.device)
    except UsageError as error:  # scikit-image, which has the photographs, is missing
        raise NotHere(str(error)) from None
    if result.step < steps:  # the trainer saves and ends when it is told to
        raise OutOfTime(f"in {precision}, after step {result.step}")
    with open(folder / "losses.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "steps": result.step,
        "metric": result.metric,
        "start": result.start,
        "end": result.end,
        "rise": result.end - result.start,
        "untouched": result.untouched,
        "seconds": time.monotonic() - began,
        "last_losses": last,
    }
