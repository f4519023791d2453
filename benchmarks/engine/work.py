"""What is measured of a case: tensors, and the contestants as functions of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor
Json = dict[str, Any]
Shape = tuple[int, int, int, int]
Function = Callable[..., list[Tensor]]

MODES = ("fwd", "fwd+bwd")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EAGER = "eager"  # the published form, from which the gate has its limits
FUSED, INTO = "fused", "fused, given output"  # this library, to which every other is compared


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Contestant(NamedTuple):
    """The arithmetic of a case, the way somebody writes it."""

    function: Function  # of the case's tensors: its outputs
    modes: tuple[bool, ...] = (False, True)  # without and with the backward
    contiguous: bool = False  # takes contiguous copies, also where the case's maps are channels last
    compiles: bool = False  # run through torch.compile


def contestants(functions: Mapping[str, Function], compiled: bool = False) -> dict[str, Contestant]:
    """Of these functions, and with `compiled` of what torch.compile makes of the stock ones."""
    found = {name: Contestant(function) for name, function in functions.items()}
    if compiled:
        stock = {name: function for name, function in functions.items() if name != FUSED}
        found |= {f"torch.compile, {name}": Contestant(f, compiles=True) for name, f in stock.items()}
    return found


class Work(NamedTuple):
    """A case's arguments and contestants: function(*tensors) -> outputs; gradients of `wanted` for given ones of the
    outputs."""

    tensors: tuple[Tensor, ...]
    wanted: tuple[int, ...]
    grads: tuple[Tensor, ...]
    contestants: dict[str, Contestant]
    names: tuple[str, ...] = ()  # of the outputs and gradients; () where they are numbered
    wide: bool = False  # outputs may be float32 in cases of another dtype, as losses are
    sane: float = 0.0  # how far the published form may be from float64 in this case; 0: as far as anywhere (gate.SANE)

    def copied(self, dtype: torch.dtype | None = None, contiguous: bool = False) -> Work:
        """Fresh leaves, in the same memory format or contiguous, of another dtype if given."""

        def copy(t: Tensor) -> Tensor:
            t = t.detach().clone(memory_format=torch.contiguous_format if contiguous else torch.preserve_format)
            return t.to(dtype) if dtype and t.is_floating_point() else t

        tensors = tuple(copy(t).requires_grad_(i in self.wanted) for i, t in enumerate(self.tensors))
        return self._replace(tensors=tensors, grads=tuple(map(copy, self.grads)))

    def call(self, function: Function, backward: bool) -> list[Tensor]:
        """Outputs, and gradients with `backward`."""
        with torch.set_grad_enabled(backward):
            outputs = function(*self.tensors)
        if not backward:
            return outputs
        found = torch.autograd.grad(outputs, [self.tensors[i] for i in self.wanted], self._grads_for(outputs))
        return [*(y.detach() for y in outputs), *found]

    def timed(self, function: Function, backward: bool) -> Callable[[], object]:
        """What a clock calls: the function and its backward, and nothing else. The clock says whether autograd
        records."""
        tensors = self.tensors
        if not backward:
            return lambda: function(*tensors)
        wanted = [tensors[i] for i in self.wanted]
        grads = self._grads_for(function(*tensors))
        return lambda: torch.autograd.grad(function(*tensors), wanted, grads)

    def _grads_for(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        return [grad.to(y.dtype) for grad, y in zip(self.grads, outputs)]

    def named(self, values: list[float], backward: bool) -> list[float] | dict[str, float]:
        """Figures of the results as they go into the JSON."""
        count = len(self.grads) + (len(self.wanted) if backward else 0)
        return dict(zip(self.names[:count], values)) if self.names else values
