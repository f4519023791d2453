"""Learning rates by epoch. Published timing (CUT, and CycleGAN since 2025): the rate changes at the end of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from i2i import distributed
from i2i.config import Config


def scheduler(optimizer: Optimizer, config: Config) -> lr_scheduler.LRScheduler:
    """linear: epoch k (from 1) trains at lr * (1 - max(0, k - n_epochs) / (n_epochs_decay + 1)), so the last one is
    above 0; step: a tenth after every lr_decay_iters epochs; cosine: to 0 over all epochs (published: over n_epochs,
    after which it rises again); plateau: a fifth when the mean loss of the generator has not fallen by 1 % for more
    than 5 epochs (published: fed with a constant, so it always falls). None is ever below 0, nor rises again."""
    if config.lr_policy == "step":
        return lr_scheduler.StepLR(optimizer, config.lr_decay_iters, gamma=0.1)
    if config.lr_policy == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2, threshold=0.01, patience=5)
    if config.lr_policy == "cosine":
        epochs = config.n_epochs + config.n_epochs_decay
        return lr_scheduler.LambdaLR(optimizer, lambda done: (1 + math.cos(math.pi * min(1, done / epochs))) / 2)
    return lr_scheduler.LambdaLR(
        optimizer, lambda done: max(0, 1 - max(0, done + 1 - config.n_epochs) / (config.n_epochs_decay + 1))
    )


class Schedule:
    """The learning rates of all optimisers, and the mean loss of the epoch under way, which plateau looks at."""

    def __init__(self, optimizers: dict[str, Optimizer], config: Config):
        self.schedulers = {name: scheduler(optimizer, config) for name, optimizer in optimizers.items()}
        self.plateau = config.lr_policy == "plateau"
        self.total, self.steps = torch.zeros(()), 0
        self.mean = torch.zeros(())

    def add(self, losses: Iterable[Tensor]) -> None:
        """A step's generator losses."""
        if self.plateau:
            self.total = sum(losses, self.total)
            self.steps += 1

    def end_epoch(self) -> None:
        if self.steps:  # else it ended with the same step as the one before, and has that one's mean
            self.mean = self.total / self.steps
            distributed.average([self.mean])
        each: Any  # of plateau, step takes the mean
        for each in self.schedulers.values():
            each.step(*([float(self.mean)] if self.plateau else []))
        self.total, self.steps = torch.zeros(()), 0

    def state_dict(self) -> dict[str, Any]:
        states = {name: each.state_dict() for name, each in self.schedulers.items()}
        return {"schedulers": states, "total": float(self.total), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, each in self.schedulers.items():
            each.load_state_dict(state["schedulers"][name])
            if isinstance(each, lr_scheduler.LambdaLR):  # of the epoch under way: with more epochs it is another
                for group, lr, factor in zip(each.optimizer.param_groups, each.base_lrs, each.lr_lambdas, strict=True):
                    group["lr"] = lr * factor(each.last_epoch)
        self.total, self.steps = torch.tensor(state["total"]), state["steps"]
