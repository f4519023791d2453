"""Data made on the spot, with a known true answer: photographs and labelled attributes."""
