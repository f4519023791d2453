"""`kernels.fuse`: this library's operators inside models that nobody here wrote."""

from kernels.fusing.model import fuse
from kernels.fusing.report import FuseReport

__all__ = ["FuseReport", "fuse"]
