"""Measuring: the gate, clocks, interleaved rounds, reports. Knows no operator and no system."""
