"""Results of every CUDA kernel of the sinkhorn room, in a cluster and in global memory."""

from __future__ import annotations

import pytest
import torch
from support.norm_device import on_host as randn

from kernels.sinkhorn import launch_cuda


def everything() -> list[torch.Tensor]:
    found = []
    for held in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch_cuda, "HELD", held)
            launch_cuda._plans.clear()
            x = randn(2, 37, 29)
            plan, potentials = launch_cuda.forward(x, 3)
            found += [plan, launch_cuda.backward(randn(2, 37, 29, seed=1), x, potentials)]
        launch_cuda._plans.clear()
    return found
