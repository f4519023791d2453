"""The norm family's calls for the published networks, and for sizes at the limits of the launchers: what the off-line
tests of the implementations for GPUs plan on meta tensors."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import NamedTuple

import torch

from kernels.norm.spec import ACTIVATIONS, INSTANCE, INSTANCE_UNBIASED, LAYER_STD, Spec

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16


class Case(NamedTuple):
    shape: tuple
    dtype: torch.dtype
    channels_last: bool = False
    kind: int = INSTANCE
    activation: str = "relu"
    padding: int = 0
    parameters: str = ""  # "", "channel" or "sample"
    residual: str = ""  # "", "dense" or "strided": the inside of a map padded by 1


def call(launcher: ModuleType, case: Case, device: str = "meta") -> None:
    """Forward and backward of a case; the moments pair too, where the form is its own."""

    def new(*shape):
        order = torch.channels_last if case.channels_last else torch.contiguous_format
        return torch.empty(shape, dtype=case.dtype, device=device, memory_format=order)

    n, c, h, w = case.shape
    x = new(*case.shape)
    parameter = None
    if case.parameters:
        parameter = torch.empty((n, c) if case.parameters == "sample" else (c,), device=device)
    residual = None
    if case.residual:
        residual = new(*case.shape) if case.residual == "dense" else new(n, c, h + 2, w + 2)[:, :, 1:-1, 1:-1]
    spec = Spec(case.kind, 1e-5, 0.0, ACTIVATIONS.index(case.activation), 0.2, case.padding)
    y, stats = launcher.forward(x, parameter, parameter, residual, spec)
    launcher.backward(torch.empty_like(y), x, parameter, parameter, stats, case.padding > 0, spec)
    if case.kind == INSTANCE_UNBIASED:
        launcher.moments(x, case.kind, 1e-5)
        launcher.moments_backward(stats[0], stats[3], x, stats, case.kind)


def network_cases(dtype: torch.dtype, channels_last: bool) -> list[Case]:
    """CUT's generator and discriminator and MUNIT at 256x256, batch 1; sizes as StarGAN's and FUNIT's, larger batch."""
    made = functools.partial(Case, dtype=dtype, channels_last=channels_last)
    return [
        made((1, 64, 256, 256)),
        made((1, 64, 256, 256), padding=3),  # before the last 7x7 convolution
        made((1, 128, 256, 256)),
        made((1, 256, 128, 128)),
        made((1, 256, 64, 64), padding=1),  # inside a residual block
        made((1, 256, 64, 64), activation="none", residual="strided", padding=1),  # its end, before the next
        made((1, 256, 64, 64), activation="none", residual="dense"),
        made((1, 128, 127, 127), activation="leaky_relu"),
        made((1, 256, 63, 63), activation="leaky_relu"),
        made((1, 512, 31, 31), activation="leaky_relu"),
        made((1, 256, 64, 64), parameters="sample", padding=1),
        made((1, 256, 64, 64), parameters="sample", activation="none", residual="strided"),
        made((1, 128, 128, 128), kind=LAYER_STD, parameters="channel"),
        made((1, 64, 256, 256), kind=LAYER_STD, parameters="channel", padding=3),
        made((16, 64, 128, 128), parameters="channel"),
        made((8, 512, 16, 16), parameters="sample", activation="leaky_relu"),
        made((1, 512, 32, 32), kind=INSTANCE_UNBIASED, parameters="sample", activation="none"),
    ]


def odd_cases(dtype: torch.dtype, channels_last: bool) -> list[Case]:
    """Sizes of 1, which triton makes constants; sizes no vector divides; tiles at their limits; every activation."""
    made = functools.partial(Case, dtype=dtype, channels_last=channels_last)
    return [
        made((4, 64, 1, 1), kind=LAYER_STD, parameters="channel"),
        made((2, 1, 64, 64), activation="tanh", padding=1, residual="strided"),
        made((1, 1, 1024, 1024), parameters="channel"),
        made((3, 3, 7, 9), parameters="sample", padding=3),
        made((70, 9, 2, 2), activation="tanh"),
        made((1, 64, 180, 180), activation="tanh", residual="dense"),
        made((1, 8, 128, 128), activation="tanh", parameters="sample", residual="strided"),
        made((1, 48, 211, 197), kind=INSTANCE_UNBIASED, parameters="sample", residual="strided"),
        made((4, 96, 90, 91), activation="leaky_relu", parameters="channel", padding=1, residual="strided"),
    ]


def every_case() -> list[Case]:
    layouts = [(d, channels_last) for d in (FLOAT, BF16, HALF) for channels_last in (False, True)]
    return [case for layout in layouts for case in (*network_cases(*layout), *odd_cases(*layout))]
