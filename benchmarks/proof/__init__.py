"""What `python -m benchmarks.prove` consists of: one file for each part, the targets, the report."""
