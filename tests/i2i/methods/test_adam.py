"""Adam, for every order in memory of weights and gradients, against torch's in float64."""

import pytest
import torch
from support import golden

from i2i.methods.adam import Adam
from kernels._layout import is_channels_last

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
OPTIONS = {"lr": 1e-2, "betas": (0.5, 0.999), "weight_decay": 1e-2}


def weights(form, dtype=torch.float32):
    """With one of a single channel, whose order is both, and a bias."""
    shapes = [(4, 3, 2, 5), (4, 1, 3, 3), (6,)]
    made = [golden.wave(shape, phase=i).to(dtype) for i, shape in enumerate(shapes)]
    return [torch.nn.Parameter(t.contiguous(memory_format=form) if t.dim() == 4 else t) for t in made]


def give_gradients(parameters, form, step):
    for i, p in enumerate(parameters):
        gradient = golden.wave(p.shape, phase=0.3 + i + step).to(p.dtype)
        p.grad = gradient.contiguous(memory_format=form) if p.dim() == 4 else gradient


def exact(steps):
    parameters = weights(torch.contiguous_format, torch.float64)
    optimizer = torch.optim.Adam(parameters, foreach=False, **OPTIONS)
    for step in range(steps):
        give_gradients(parameters, torch.contiguous_format, step)
        optimizer.step()
    return parameters


def close(found, wanted):
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.detach().double(), want.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of_gradients", FORMATS)
@pytest.mark.parametrize("of_weights", FORMATS)
def test_steps(of_weights, of_gradients):
    parameters = weights(FORMATS[of_weights])
    optimizer = Adam(parameters, **OPTIONS)
    for step in range(3):
        give_gradients(parameters, FORMATS[of_gradients], step)
        optimizer.step()
    close(parameters, exact(3))
    for tensor in (parameters[0], optimizer.state[parameters[0]]["exp_avg"]):
        assert is_channels_last(tensor) == (of_weights == "channels last")


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_copied(form):
    parameters = weights(FORMATS[form])
    optimizer = Adam(parameters, **OPTIONS)
    give_gradients(parameters, FORMATS[form], 0)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    names = {row.key for row in profile.key_averages()}
    assert "aten::_fused_adam_" in names and not names & {"aten::clone", "aten::contiguous"}


def test_a_weight_without_gradient_stays():
    parameters = weights(torch.channels_last)
    optimizer = Adam(parameters, **OPTIONS)
    give_gradients(parameters[:1], torch.channels_last, 0)
    optimizer.step()
    assert torch.equal(parameters[1], weights(torch.channels_last)[1])
    assert list(optimizer.state) == parameters[:1]
