"""What the stock training steps share: weights and draws of ours, memory format, precision, optimisers, compilation;
and the contestants that each system has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from benchmarks.systems.stock_layers import Style, wide
from i2i.config import Config
from i2i.methods.base import Method

Losses = dict[str, Tensor]


class StockMethod:
    """A system's step on stock networks, from the weights of `ours` and with its draws.

    Everything of `style` off: the published code's order of work. What `careful` and `compiled` change in a step is
    said by the subclasses, what they change in a layer by the layers. ValueError for a GAN loss other than lsgan.
    """

    networks: dict[str, nn.Module]

    def __init__(self, config: Any, device: torch.device, style: Style, ours: Method, networks: dict[str, nn.Module]):
        if config.gan_mode != "lsgan":
            raise ValueError(f"gan_mode must be lsgan for a step in stock torch, got {config.gan_mode!r}")
        self.config, self.device, self.style, self.networks = config, device, style, networks
        self.form = (
            kernels.preferred_memory_format(device, getattr(torch, config.precision))
            if style.careful
            else torch.contiguous_format
        )
        for name, net in networks.items():
            net.load_state_dict(ours.networks[name].state_dict())
            setattr(self, name, net.to(device, memory_format=self.form))

    def step(self, real_a: Tensor, real_b: Tensor) -> Losses:
        """Losses by the names that ours has."""
        raise NotImplementedError

    def adam(self, *names: str, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        parameters = [p for name in names for p in self.networks[name].parameters()]
        betas, fused = (self.config.beta1, self.config.beta2), self.style.careful or None
        return torch.optim.Adam(parameters, lr=self.config.lr, betas=betas, weight_decay=weight_decay, fused=fused)

    def compile(self, *modules: nn.Module) -> None:
        """In place, where the style asks for it."""
        if self.style.compiled:
            for module in modules:
                module.compile(dynamic=False, mode="reduce-overhead" if self.style.graphs else None)

    def begin(self, *batch: Tensor) -> list[Tensor]:
        """To be called first in every step: its images where, and as, they are computed with."""
        if self.style.graphs:  # else torch guesses where a step begins, by the backward passes, of which there are two
            torch.compiler.cudagraph_mark_step_begin()
        return [images.to(self.device, memory_format=self.form) for images in batch]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @staticmethod
    def gan(scores: Tensor, real: bool) -> Tensor:
        scores = wide(scores)
        return F.mse_loss(scores, torch.full_like(scores, float(real)))

    def l1(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean absolute difference. That of a mean has a gradient in NCHW, whatever x is; that of a sum has not."""
        if self.style.careful:
            return (wide(x) - y).abs().sum() / x.numel()
        return F.l1_loss(wide(x), wide(y))

    @staticmethod
    def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Variant(NamedTuple):
    """A way to run a system's step."""

    about: str
    build: Callable[[Any, torch.device], Method | StockMethod]
    precision: str
    cuda_only: bool = False


OURS, PUBLISHED, CAREFUL, GRAPHS = "ours", "published form", "careful Python", "torch.compile, CUDA graphs"


def contestants(
    ours: type[Method],
    stock: Callable[[Any, torch.device, Style], StockMethod],
    published: str,
    careful: str,
    compiled: str,
    eager: str = "the same under bfloat16 autocast",
) -> dict[str, Variant]:
    """All of a system, by name. The last four: what is said of them, in a line each."""

    def build(**style: bool) -> Callable[[Any, torch.device], StockMethod]:
        return lambda config, device: stock(config, device, Style(**style))

    compiled_about = f"careful Python's networks through torch.compile, with {compiled}, which it vectorises better"
    return {
        OURS: Variant("i2i's step on the fused operators, bfloat16 autocast", ours, "bfloat16"),
        "ours, float32": Variant("the same without autocast", ours, "float32"),
        PUBLISHED: Variant(published, build(), "float32"),
        "eager bfloat16": Variant(eager, build(), "bfloat16"),
        CAREFUL: Variant(careful, build(careful=True), "bfloat16"),
        "torch.compile": Variant(compiled_about, build(careful=True, compiled=True), "bfloat16"),
        GRAPHS: Variant(
            'the same with mode="reduce-overhead"',
            build(careful=True, compiled=True, graphs=True),
            "bfloat16",
            cuda_only=True,
        ),
    }


def available(variants: Mapping[str, Variant], device: torch.device) -> list[str]:
    """Names of those that can run on this device."""
    return [name for name, variant in variants.items() if device.type == "cuda" or not variant.cuda_only]


def prepare(
    variant: Variant, kind: type[Config], device: str, size: int, networks: dict[str, Any]
) -> tuple[Method | StockMethod, list[Tensor], int]:
    """What child.py measures of `variant` at batch 1: (model, batch of noise, steps at a time). `networks`: other
    settings of the configuration `kind`. ValueError for one that is for CUDA alone elsewhere."""
    place = torch.device(device)
    if variant.cuda_only and place.type != "cuda":
        raise ValueError(f"device must be cuda for a contestant with CUDA graphs, got {device}")
    config = kind(crop_size=size, precision=variant.precision, **networks)
    generator = torch.Generator().manual_seed(0)
    channels = (config.input_nc, config.output_nc)
    images = [torch.rand(1, c, size, size, generator=generator) * 2 - 1 for c in channels]
    return variant.build(config, place), [image.to(place) for image in images], 1
