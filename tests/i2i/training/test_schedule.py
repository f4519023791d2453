"""Learning rates by epoch against the published formulas, and their state."""

import math
import random

import pytest
import torch

from i2i.config import Config
from i2i.training.schedule import Schedule


def rates(epochs: int, losses: list[float] | None = None, resume_at: int | None = None, **options) -> list[float]:
    """The learning rate during each epoch."""
    config = Config(lr=1.0, **options)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule({"G": optimizer}, config)
    found = []
    for epoch in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for _ in range(2):
            schedule.add([torch.tensor(losses[epoch] if losses else 0.0)])
            if epoch == resume_at:  # in the middle of an epoch
                states = schedule.state_dict(), optimizer.state_dict()
                optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
                schedule = Schedule({"G": optimizer}, config)
                schedule.load_state_dict(states[0])
                optimizer.load_state_dict(states[1])
        schedule.end_epoch()
    return found


def test_linear_is_cut():
    """Epoch k (from 1): 1 - max(0, k - n) / (d + 1); the last of 200 + 200 is 0.005, and none is 0."""
    found = rates(400)
    assert found == pytest.approx([1 - max(0, k - 200) / 201 for k in range(1, 401)], abs=1e-12)
    assert found[-1] == pytest.approx(1 / 201)


def test_step_cosine_and_plateau():
    options = {"n_epochs": 3, "n_epochs_decay": 3}
    assert rates(6, lr_policy="step", lr_decay_iters=2, **options) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = [(1 + torch.tensor(torch.pi * k / 6).cos().item()) / 2 for k in range(6)]
    assert rates(6, lr_policy="cosine", **options) == pytest.approx(cosine, abs=1e-6)
    falling = [1 / (k + 1) for k in range(10)]
    assert rates(10, falling, lr_policy="plateau") == [1.0] * 10
    flat = [1.0] + [0.995] * 9  # less than 1 %: the sixth epoch without a gain is one too many
    assert rates(10, flat, lr_policy="plateau") == pytest.approx([1.0] * 7 + [0.2] * 3)


@pytest.mark.parametrize("policy", ["linear", "step", "cosine", "plateau"])
def test_a_resumed_schedule_goes_on(policy):
    options = {"lr_policy": policy, "n_epochs": 3, "n_epochs_decay": 9, "lr_decay_iters": 3}
    losses = [3, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1]
    assert rates(12, losses, resume_at=6, **options) == rates(12, losses, **options)


def test_epochs_that_end_with_one_step_have_one_mean():
    """The second has no losses of its own: taken for 0, they would be a best that no later epoch reaches."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule({"G": optimizer}, Config(lr=1.0, lr_policy="plateau"))
    for step in range(10):
        optimizer.step()
        schedule.add([torch.tensor(1.0 / (step + 1))])
        for _ in range(3):
            schedule.end_epoch()
    assert optimizer.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("policy", ["linear", "cosine"])
def test_a_run_resumed_for_more_epochs_has_the_rates_of_the_longer_one(policy):
    """After the last epoch the rate is 0; with that, the first of the epochs asked for would have been in vain."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    short = Schedule({"G": optimizer}, Config(lr=1.0, lr_policy=policy, n_epochs=2, n_epochs_decay=0))
    for _ in range(2):
        optimizer.step()
        short.end_epoch()
    assert optimizer.param_groups[0]["lr"] == 0
    options = {"lr_policy": policy, "n_epochs": 4, "n_epochs_decay": 4}
    longer = Schedule({"G": optimizer}, Config(lr=1.0, **options))
    optimizer.param_groups[0]["lr"] = 0  # as the optimiser's own state has it
    longer.load_state_dict(short.state_dict())
    found = []
    for _ in range(6):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        longer.end_epoch()
    assert found == rates(8, **options)[2:]


@pytest.mark.parametrize("policy", ["linear", "step", "cosine", "plateau"])
def test_no_rate_is_below_zero_or_rises(policy):
    """Whatever the epochs, past their end too, and when a run is resumed with others."""
    rng = random.Random(0)
    edges = [(0, 1), (1, 0), (0, 400), (400, 0), (1, 1)]
    for n, decay in edges + [(rng.randrange(30), rng.randrange(1, 30)) for _ in range(6)]:
        options = {"lr_policy": policy, "n_epochs": n, "n_epochs_decay": decay, "lr_decay_iters": rng.randrange(1, 9)}
        losses = [rng.choice((0.0, 1.0, -1.0, 1e9)) for _ in range(n + decay + 12)]
        found = rates(len(losses), losses, **options)
        assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in found), options
        assert all(after <= before for before, after in zip(found, found[1:])), options
        assert all(rate > 0 for rate in found[: n + decay]), options  # no epoch of the run is in vain
        short = options | {"n_epochs": rng.randrange(1, 5), "n_epochs_decay": rng.randrange(5)}
        assert min(resumed_with(options, short, rng.randrange(n + decay))) >= 0


def resumed_with(options: dict, others: dict, done: int) -> list[float]:
    """The rates of a run that has done so many epochs with `options` and goes on with `others`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedules = [Schedule({"G": optimizer}, Config(lr=1.0, **each)) for each in (options, others)]
    for _ in range(done):
        optimizer.step()
        schedules[0].end_epoch()
    schedules[1].load_state_dict(schedules[0].state_dict())
    found = []
    for _ in range(50):
        optimizer.step()
        found.append(optimizer.param_groups[0]["lr"])
        schedules[1].end_epoch()
    return found
