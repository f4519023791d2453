"""A training loop of your own with one line more: `python examples/plain_loop.py`, seconds on a CPU.

A small network learns to sharpen made pictures, first as PyTorch has it, then accelerated, from the same weights. The
losses agree, the accelerated step is shorter, and its checkpoint loads into the network that it came from.
"""

from __future__ import annotations

import statistics
import time

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


def train(net: nn.Module, steps: int = 8) -> tuple[list[float], float]:
    """(losses, median seconds of a step)."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses, seconds = [], []
    for _ in range(steps):
        blurred, sharp = picture()
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = F.l1_loss(net(blurred), sharp)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
    return losses, statistics.median(seconds)


def main() -> None:
    stock, before = train(network())

    net = kernels.accelerate(network())  # the line
    print(net.fuse_report, "\n")

    ours, after = train(net)
    print("step   as PyTorch has it   accelerated")
    for step, (a, b) in enumerate(zip(stock, ours)):
        print(f"{step:4} {a:19.6f} {b:13.6f}")
    print(f"\nseconds per step: {before:.4f}, accelerated {after:.4f} ({before / after:.2f}x)")
    torch.testing.assert_close(ours, stock, rtol=1e-3, atol=1e-5)
    network().load_state_dict(net.state_dict())  # a checkpoint is as before


if __name__ == "__main__":
    main()
