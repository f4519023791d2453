"""What the files of this room share: one operator on planes of one size, CUT's filter, and allocation of the result."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

# Kinds of operators. Their two parameters (a, b) on each axis:
PAD = 0  # reflection: a pixels before, b behind
DOWN = 1  # reflection, then the binomial filter of size a, every second position
UP = 2  # x2, bilinear with half-pixel centres


class Spec(NamedTuple):
    """One operator on planes of one size. `transposed`: its gradient instead, from planes of the output's size."""

    kind: int
    rows: tuple[int, int]  # parameters (a, b)
    columns: tuple[int, int]
    height: int  # of the operator's input, whichever direction
    width: int
    transposed: bool = False

    @property
    def output(self) -> tuple[int, int]:
        """(height, width) of what comes out in this direction."""
        if self.transposed:
            return self.height, self.width
        return output_size(self.kind, self.rows, self.height), output_size(self.kind, self.columns, self.width)


def output_size(kind: int, parameters: tuple[int, int], size: int) -> int:
    """Of one axis. Sizes may be symbolic (torch.compile)."""
    if kind == PAD:
        return size + parameters[0] + parameters[1]
    return (size + 1) // 2 if kind == DOWN else 2 * size


def binomial(size: int) -> torch.Tensor:
    """The filter of CUT's Downsample, (size, size), sum 1, float32, on the CPU: exact up to size 7."""
    row = torch.tensor([float(math.comb(size - 1, t)) for t in range(size)], device="cpu")
    return torch.outer(row, row) / 4.0 ** (size - 1)


def new_output(x: torch.Tensor, spec: Spec, channels_last: bool) -> torch.Tensor:
    """Allocates the result, in the memory order of x."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*x.shape[:2], *spec.output), dtype=x.dtype, device=x.device, memory_format=order)
