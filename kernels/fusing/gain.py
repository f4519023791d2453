"""What `accelerate` gains for a model: steps with gradients of the model and of an accelerated copy, in turn."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from kernels.fusing.accelerating import accelerate

ROUNDS = 5  # after one to warm up; a step of a generator on a CPU takes a second
Step = Callable[[], float]


def measured(model: nn.Module, shapes: Sequence[tuple[int, ...]], settings: dict[str, Any]) -> list[str]:
    """Lines of text: the difference of outputs and gradients in float64, and the time of a step before and after.

    Args:
        model: stays what it is.
        shapes: of the inputs, standard normal numbers in float32.
        settings: of `accelerate`.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    exact = [x.double() for x in inputs]
    # the fused copy in float64 runs the reference: it shows that the same is computed, by whatever it is computed
    stock, same = copy.deepcopy(model).double(), accelerate(copy.deepcopy(model).double())
    outputs, gradients = map(_difference, _results(stock, exact), _results(same, exact))
    del stock, same
    steps = {"stock": _step(copy.deepcopy(model), inputs), "accelerated": _step(_accelerated(model, settings), inputs)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            seconds = step()
            if turn:
                times[name].append(seconds)
    before, after = (statistics.median(times[name]) for name in steps)
    spread = ", ".join(f"{name} {min(t):.3f} to {max(t):.3f} s" for name, t in times.items())
    return [
        f"in float64, outputs differ by {outputs:.1e} of the largest one, gradients by {gradients:.1e}",
        f"a step with gradients: {before:.3f} s before, {after:.3f} s after: {before / after:.2f}x "
        f"(medians of {ROUNDS} in turn on {device.type}, freed memory kept in both where it can be; {spread})",
    ]


def _accelerated(model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    return accelerate(copy.deepcopy(model), **settings)


def _results(model: nn.Module, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs, and gradients of inputs and parameters."""
    given = [x.clone().requires_grad_() for x in inputs]
    with torch.random.fork_rng():
        torch.manual_seed(0)  # for dropout
        outputs = _outputs(model, given)
    wanted = [*given, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(_loss(outputs), wanted, allow_unused=True)
    return [y.detach() for y in outputs], [torch.zeros(1) if g is None else g for g in gradients]


def _outputs(model: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    shapes = [tuple(x.shape) for x in inputs]
    try:
        given = model(*inputs)
    except Exception as error:  # of somebody else's code, to which these shapes may mean nothing
        first = str(error).partition("\n")[0]
        raise ValueError(f"--input: the model does not take {shapes} ({type(error).__name__}: {first})") from error
    outputs = [y for y in tree_leaves(given) if isinstance(y, torch.Tensor) and y.requires_grad]
    if not outputs:
        raise ValueError(f"--input: for inputs of {shapes} the model gives no tensor with a gradient")
    return outputs


def _loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    return sum((y.float() if y.dtype != torch.float64 else y).square().mean() for y in outputs)  # pyright: ignore[reportReturnType]


def _difference(want: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    largest = max(float(a.abs().max()) for a in want if a.numel())
    return max(float((a - b).abs().max()) for a, b in zip(want, got, strict=True) if a.numel()) / (largest or 1.0)


def _step(model: nn.Module, inputs: list[torch.Tensor]) -> Step:
    def step() -> float:
        model.zero_grad()
        _wait(inputs[0])
        start = time.perf_counter()
        _loss(_outputs(model, inputs)).backward()
        _wait(inputs[0])
        return time.perf_counter() - start

    return step


def _wait(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
