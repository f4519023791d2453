"""Benchmarks of the fused operators against stock PyTorch: `python -m benchmarks`."""
