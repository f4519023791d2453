"""Published image-to-image systems on fused operators: networks, training (`i2i train`), use (`i2i translate`, ...)."""

import kernels as kernels  # first: it minds Ctrl-C while torch is imported
from i2i.errors import NotSaved, TrainingDiverged, UsageError
from i2i.inference.weights import load
from i2i.methods import METHODS, Method
from i2i.training.loop import train

__all__ = ["METHODS", "Method", "NotSaved", "TrainingDiverged", "UsageError", "load", "train"]
