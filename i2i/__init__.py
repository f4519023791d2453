"""Published image-to-image systems on fused operators. So far: CUT, `python -m i2i train`."""

from i2i.config import Config
from i2i.cut import CUT
from i2i.errors import TrainingDiverged, UsageError
from i2i.losses import GANLoss
from i2i.networks import PatchDiscriminator, PatchFeatureNetwork, ResnetGenerator
from i2i.train import train

__all__ = [
    "CUT",
    "Config",
    "GANLoss",
    "PatchDiscriminator",
    "PatchFeatureNetwork",
    "ResnetGenerator",
    "TrainingDiverged",
    "UsageError",
    "train",
]
