"""What a part of the proof is, and the frame it runs in: whatever becomes of it is its own affair, and is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.engine.work import Json

OK, FAILED, LATE, NOT_HERE, INTERRUPTED = "ok", "failed", "out of time", "not possible here", "interrupted"
BAD = (FAILED, LATE)  # what makes the exit status 1


class NotHere(Exception):
    """This machine, or this installation, lacks what the part needs."""


class OutOfTime(Exception):
    """The part's limit was reached; what was found until then stays."""


class Asked(NamedTuple):
    """What a part gets."""

    device: torch.device
    until: float  # of time.monotonic()
    folder: Path  # for a while
    sizes: Json  # its own of SIZES, or other ones for tests


class Part(NamedTuple):
    """run(asked, found) measures into `found`, piece by piece, so that what was found survives the end of its time. It
    raises NotHere, OutOfTime, or anything else where it failed."""

    name: str
    about: str
    seconds: float  # of the budget of a whole run
    gpu: bool  # without one there is nothing to run
    run: Callable[[Asked, Json], None]
    sizes: dict[str, Any]  # what is measured, by device


def run_part(part: Part, device: torch.device, seconds: float, folder: Path, sizes: Json | None = None) -> Json:
    """What the part found, with its "status", "reason", "seconds" and "limit_s"."""
    found: Json = {}
    began = time.monotonic()
    status, reason = OK, ""
    try:
        if part.gpu and device.type != "cuda":
            raise NotHere("needs a GPU")
        chosen = part.sizes[device.type] if sizes is None else sizes
        part.run(Asked(device, began + seconds, folder, chosen), found)
    except NotHere as error:
        status, reason = NOT_HERE, str(error)
    except OutOfTime as error:
        status, reason = LATE, f"after {seconds:.0f} s{f', {error}' if str(error) else ''}"
    except KeyboardInterrupt:
        status, reason = INTERRUPTED, "by Ctrl-C"
    except Exception as error:  # a part that raises anything costs itself alone
        status, reason = FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return {
        "status": status,
        "reason": reason,
        "seconds": time.monotonic() - began,
        "limit_s": seconds,
        **found,
    }


def share(parts: list[Part], left: float) -> float:
    """Seconds for the first of `parts`: its share of what is left, so that time one part saved goes to the others."""
    return left * parts[0].seconds / sum(part.seconds for part in parts)
