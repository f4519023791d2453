"""`kernels.fuse` and `kernels.accelerate`: this library's operators inside models that nobody here wrote."""

from kernels.fusing.accelerating import accelerate
from kernels.fusing.model import fuse, unfuse
from kernels.fusing.report import FuseReport

__all__ = ["FuseReport", "accelerate", "fuse", "unfuse"]
