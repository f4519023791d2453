"""The training loop, and what it reads and writes."""
