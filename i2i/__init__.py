"""Published image-to-image systems on fused operators: networks, training (`i2i train`), use (`i2i translate`, ...)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import kernels as kernels  # first: it minds Ctrl-C while torch is imported
from i2i.errors import NotSaved, TrainingDiverged, UsageError
from i2i.inference.weights import load

if TYPE_CHECKING:
    from i2i.methods import METHODS, Method
    from i2i.training.loop import train

__all__ = ["METHODS", "Method", "NotSaved", "TrainingDiverged", "UsageError", "load", "train"]

# Imported when asked for: who loads weights needs neither the trainer nor any of its systems.
LATER = {"METHODS": "i2i.methods", "Method": "i2i.methods", "train": "i2i.training.loop"}


def __getattr__(name: str) -> Any:
    if name in ("cli", "methods", "training"):  # as before, without an import of its own
        return import_module(f"i2i.{name}")
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(LATER[name]), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
