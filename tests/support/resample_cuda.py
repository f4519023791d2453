"""Results of the CUDA kernel of the resample room: every operator, both directions, both memory formats."""

from __future__ import annotations

import torch
from support.norm_device import on_host as randn

from kernels.resample import launch_cuda
from kernels.resample.spec import DOWN, PAD, UP, Spec


def everything() -> list[torch.Tensor]:
    found = []
    for channels_last in (False, True):
        x = randn(2, 8, 9, 11, channels_last=channels_last)
        for spec in (
            Spec(DOWN, (3, 0), (4, 0), 9, 11),
            Spec(UP, (0, 0), (0, 0), 9, 11),
            Spec(PAD, (2, 2), (1, 0), 9, 11),
        ):
            y = launch_cuda.apply(x, spec, channels_last)
            found += [y, launch_cuda.apply(y, spec._replace(transposed=True), channels_last)]
    return found
