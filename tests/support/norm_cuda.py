"""Results of every CUDA kernel of the norm family, held and swept, on maps that clusters of several blocks share."""

from __future__ import annotations

import pytest
import torch
from support.norm_device import force, restore
from support.norm_device import on_host as randn

from kernels.norm import launch_cuda
from kernels.norm.spec import INSTANCE, INSTANCE_UNBIASED, LAYER_STD, Spec

SHAPES = [((1, 3, 61, 67), False), ((1, 16, 24, 31), True), ((2, 5, 16, 16), False)]


def everything() -> list[torch.Tensor]:
    found = []
    for path in ("resident", "merged", "combined"):
        with pytest.MonkeyPatch.context() as patch:
            force(patch, "cuda", path)
            for shape, channels_last in SHAPES:
                x = randn(*shape, channels_last=channels_last) * 2 + 1
                scale, shift = randn(shape[1], seed=1), randn(shape[1], seed=2)
                for padding, kind in ((0, INSTANCE), (1, INSTANCE_UNBIASED), (0, LAYER_STD)):
                    if kind == LAYER_STD and path != "combined":
                        continue
                    spec = Spec(kind, 1e-5, 0.0, 1, 0.2, padding)
                    y, stats = launch_cuda.forward(x, scale, shift, None, spec)
                    grad = randn(*y.shape, seed=3, channels_last=channels_last)
                    found += [y, stats, *launch_cuda.backward(grad, x, scale, shift, stats, padding > 0, spec)]
                found.append(launch_cuda.moments(x, INSTANCE, 1e-5))
        restore("cuda")
    return [t for t in found if t is not None]
