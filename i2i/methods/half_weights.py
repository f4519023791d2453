"""Weights in 16 bits, for convolutions and products under autocast: made once per update, not once per use.

autocast casts every weight again in each of its regions, and each gradient back, one by one: 362 launches of a bfloat16
CUT step. Here the copies are tensors that stay, written after each update in one multi-tensor operation,
and a backward pass adds what it leaves in them to the gradients of the weights in one or two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from i2i import multi_tensor
from i2i.methods.overlap import buckets

# Layers that give weight and bias to an operator which autocast runs in 16 bits, and do nothing else with them.
CAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class HalfWeights:
    """The copies of one network's convolutions and linear layers. Its parameters stay what they are; while `used`, the
    layers see the copies."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        self.places: list[tuple[dict[str, Any], str]] = []
        self.weights: list[Tensor] = []
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, CAST):
                    self.places.append((module._parameters, name))
                    self.weights.append(parameter)
        self.copies = [torch.empty_like(weight, dtype=dtype, requires_grad=False) for weight in self.weights]
        self.seen: list[tuple[int, int]] = []
        at: dict[int, list[int]] = {}
        for i, weight in enumerate(self.weights):
            at.setdefault(id(weight), []).append(i)
        found = [[i for p in bucket for i in at.get(id(p), ())] for bucket in buckets(network.parameters())]
        self.parts = [part for part in found if part]  # which of them are in one bucket of `overlap`

    def renew(self) -> None:
        """Copy the weights, which an update has changed."""
        multi_tensor.copy(self.copies, self.weights)
        self.seen = self._state()

    def check(self) -> None:
        """Copy the weights if they are not those of the last copy, as when somebody has loaded others. The step of a
        fused optimiser does not show: `renew` comes after it."""
        if self.seen != self._state():
            self.renew()

    def _state(self) -> list[tuple[int, int]]:
        return [(weight._version, weight.data_ptr()) for weight in self.weights]

    @contextmanager
    def used(self, in_buckets: bool = False) -> Iterator[None]:
        """The layers see the copies. As with autocast's own, gradients add up in 16 bits where weights are used several
        times in one such context, and in float32 beyond. `in_buckets`: those of a bucket of `overlap` are added as soon
        as they are all there, and not those of the network at the end of the backward pass."""
        copies: list[Any] = list(self.copies)
        for part in self.parts if in_buckets else [range(len(copies))]:
            weights = [self.weights[i] for i in part]
            if not torch.is_grad_enabled() or not any(weight.requires_grad for weight in weights):
                continue
            tracked: Any = _Copies.apply([self.copies[i] for i in part], *weights)
            if in_buckets:  # autograd runs what was made first last, but for what comes before all else
                tracked[0].grad_fn._set_sequence_nr(torch.iinfo(torch.int64).max)
            for i, copy in zip(part, tracked, strict=True):
                copies[i] = copy
        with self._shown(copies):
            yield

    def unused(self) -> AbstractContextManager[None]:
        """The layers see the weights, `used` around it or not."""
        return self._shown(self.weights)

    @contextmanager
    def _shown(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        before = [parameters[name] for parameters, name in self.places]
        for (parameters, name), tensor in zip(self.places, tensors):
            parameters[name] = tensor
        try:
            yield
        finally:
            for (parameters, name), tensor in zip(self.places, before):
                parameters[name] = tensor


class _Copies(torch.autograd.Function):
    """The copies, whose gradients become those of the weights. It saves nothing, so that several backward passes may
    go through it."""

    @staticmethod
    def forward(ctx: Any, copies: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.weights = weights
        return tuple(copy.detach() for copy in copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        """Adds them itself: autograd would take a launch for each weight."""
        add_gradients([(weight, found) for weight, found in zip(ctx.weights, gradients) if found is not None])
        return (None,) * (1 + len(gradients))


def add_gradients(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Adds gradients in 16 bits to those of their weights, which are in float32."""
    pairs = list(pairs)
    first = [(weight, found) for weight, found in pairs if weight.grad is None]
    held = [weight.grad for weight, _ in pairs if weight.grad is not None]
    more = [found for weight, found in pairs if weight.grad is not None]
    made = [torch.empty_like(weight, requires_grad=False) for weight, _ in first]
    multi_tensor.copy(made, [found for _, found in first])
    for (weight, _), gradient in zip(first, made):
        weight.grad = gradient
    if held and held[0].device.type != "cpu":  # where a sum of two dtypes is not one multi-tensor operation
        wide = [torch.empty_like(gradient) for gradient in held]
        multi_tensor.copy(wide, more)
        more = wide
    multi_tensor.add(held, more)
