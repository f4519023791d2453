import pytest
from support.image_folders import noise, save


@pytest.fixture
def root(tmp_path):
    """Three images of A and two of B, of several sizes, one smaller than any crop."""
    for name, sizes in {"trainA": [(40, 50), (9, 7), (64, 33)], "trainB": [(50, 50), (31, 80)]}.items():
        for i, size in enumerate(sizes):
            save(tmp_path / name / f"{i}.{'jpg' if i else 'png'}", noise(*size, seed=i))
    return tmp_path
