"""Benchmarks of the fused operators against stock PyTorch: `python -m benchmarks`."""

import kernels as kernels  # first: it minds Ctrl-C while torch is imported
