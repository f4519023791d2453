"""What tests of whole runs begin with."""

import numpy as np
import pytest
import torch
from PIL import Image

import kernels


@pytest.fixture(autouse=True)
def no_plot_of_losses(request, monkeypatch):
    """Matplotlib takes longer for one plot than these tiny runs for their steps. `plots` asks for the real one."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr("i2i.training.loop.plot_losses", lambda table, path: path.write_bytes(b""))


@pytest.fixture
def plots():
    """Losses are plotted as users see them."""


@pytest.fixture(params=["channels last", "contiguous"])
def form(request, monkeypatch):
    """The memory format of runs inside: both, whatever the machine is that runs the tests, and the precision."""
    form = torch.channels_last if request.param == "channels last" else torch.contiguous_format
    monkeypatch.setattr(kernels, "preferred_memory_format", lambda *_, **__: form)
    return form


@pytest.fixture
def one_thread():
    """Sums over threads depend on how many there are; the promise of equal losses is for one number of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path):
    for name, shade in {"trainA": 60, "trainB": 180}.items():
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, shade, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path
