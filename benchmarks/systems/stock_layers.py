"""Layers in stock torch that several systems have, as published and as a careful user would write them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Style(NamedTuple):
    """What a careful user changes. All off: the published form."""

    careful: bool = False  # norm as batch norm of each sample, ReLU out of place, bilinear x2, blur and pad in float32
    compiled: bool = False  # and what the compiler vectorises: blur as slices, ReLU as a maximum
    graphs: bool = False  # and CUDA graphs of what is compiled


def wide(x: Tensor) -> Tensor:
    """In float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Norm(nn.Module):
    """Instance norm. Batch norm of one sample is the same, and does not go through a reshape that loses channels last
    (nor through torch 2.13's wrong gradient of instance norm there)."""

    def __init__(self, style: Style):
        super().__init__()
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        if not self.style.careful:
            return F.instance_norm(x)
        planes = [F.batch_norm(sample, None, None, training=True) for sample in x.split(1)]
        return planes[0] if len(planes) == 1 else torch.cat(planes)


class Relu(nn.Module):
    def __init__(self, style: Style, slope: float = 0.0):
        super().__init__()
        self.style, self.slope = style, slope

    def forward(self, x: Tensor) -> Tensor:
        if self.slope:
            return F.leaky_relu(x, self.slope, inplace=not self.style.careful)
        # a ReLU's mask of bool is what inductor stores and loads very slowly on CPUs with AVX-512
        return torch.maximum(x, x.new_zeros(())) if self.style.compiled else F.relu(x, inplace=not self.style.careful)


class Pad(nn.Module):
    """Reflection padding. Autocast would compute it in float32, and hand a float32 map on."""

    def __init__(self, style: Style, size: int):
        super().__init__()
        self.style, self.size = style, size

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not self.style.careful):
            return F.pad(x, (self.size,) * 4, mode="reflect")
