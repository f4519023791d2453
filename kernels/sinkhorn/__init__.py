"""Entropic optimal transport by Sinkhorn iterations, in the log domain."""

from kernels.sinkhorn.op import sinkhorn

__all__ = ["sinkhorn"]
