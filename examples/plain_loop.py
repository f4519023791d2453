"""A training loop of your own with one line more: `python examples/plain_loop.py`, seconds on a CPU.

A small network learns to sharpen made pictures, as PyTorch has it and accelerated, from the same weights and in turn.
Losses of both and the time of a step are printed; a loss that differs is an error. Both keep freed memory here, which
accelerate asks of the whole process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def network(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, width, 3, padding=1), nn.InstanceNorm2d(width), nn.ReLU(True)]
    return nn.Sequential(*first, Block(width), Block(width), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())


def picture(batch: int = 2, size: int = 96) -> tuple[Tensor, Tensor]:
    """(blurred, sharp): stripes of random colours and directions, [batch, 3, size, size] in -1 to 1."""
    axis = torch.linspace(-1, 1, size)
    turned = torch.randn(batch, 3, 2, 1, 1)
    sharp = torch.sin(12 * (turned[:, :, 0] * axis[:, None] + turned[:, :, 1] * axis)).sign()
    return F.avg_pool2d(sharp, 5, stride=1, padding=2), sharp


def trainer(net: nn.Module) -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """A step of the loop: (loss, seconds)."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(blurred: Tensor, sharp: Tensor) -> tuple[float, float]:
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = F.l1_loss(net(blurred), sharp)
        loss.backward()
        optimizer.step()
        return float(loss.detach()), time.perf_counter() - began

    return step


def main(steps: int = 10) -> None:
    stock = trainer(network())

    net = kernels.accelerate(network())  # the line
    print(net.fuse_report, "\n")
    ours = trainer(net)

    print("step   as PyTorch has it   accelerated")
    before, after = [], []
    for step in range(steps):
        batch = picture()
        (want, stock_s), (got, our_s) = stock(*batch), ours(*batch)  # in turn, so that both see the same machine
        print(f"{step:4} {want:19.6f} {got:13.6f}")
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
        before.append(stock_s)
        after.append(our_s)
    old, new = statistics.median(before[1:]), statistics.median(after[1:])  # the first compiles and warms up
    print(f"\nseconds per step: {old:.4f}, accelerated {new:.4f} ({old / new:.2f}x)")
    network().load_state_dict(net.state_dict())  # a checkpoint is as before


if __name__ == "__main__":
    main()
