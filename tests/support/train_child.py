"""Run by test_distributed.py in a process of its own: `i2i train`, leaving the weights of every process behind."""

import sys

import torch

from i2i import distributed
from i2i.__main__ import main
from i2i.training.loop import Run

train = Run.train


def train_and_keep_weights(self, done):
    result = train(self, done)
    state = {name: net.state_dict() for name, net in self.model.networks.items()}
    torch.save(state, self.output / f"rank{distributed.rank()}.pt")
    return result


Run.train = train_and_keep_weights
sys.exit(main(sys.argv[1:]))
