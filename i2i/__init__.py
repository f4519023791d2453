"""Published image-to-image systems on fused operators: networks, training (`i2i train`), use (`i2i translate`, ...)."""

from i2i.errors import TrainingDiverged, UsageError
from i2i.methods import METHODS, Method
from i2i.train import train
from i2i.weights import load

__all__ = ["METHODS", "Method", "TrainingDiverged", "UsageError", "load", "train"]
