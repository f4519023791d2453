"""What is done with trained weights: loading, translating, tiling, exporting, measuring."""
