"""What blocks that call their norms by name are made of, in the tests of kernels.fuse."""

import torch
from torch import nn

X = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Parts(nn.Module):
    """What the blocks below are made of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pad = nn.ReflectionPad2d(1)
        self.conv1 = nn.Conv2d(4, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.norm1 = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.norm2 = nn.InstanceNorm2d(4, affine=True)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.body = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4))
        self.optional = None
        self.slope = 0.3
        self.seen = []
        self.calls = 0
