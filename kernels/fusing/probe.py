"""What a module of somebody else's class computes, found out on small maps of noise.

Values and gradients, in both modes, for one sample and for several, against this library's operators in float64. The
forward runs on tensors that stand in for its parameters, buffers and inputs, so float64 can be asked of any module:
what differs from a published formula by 1e-5 (an eps inside or outside a root) shows there and might not in 16 bits.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

Tensor = torch.Tensor
How = TypeVar("How", bound=Hashable)
Noise = Callable[..., Tensor]

DIFFERENT = "on small maps it computes something else"
# small planes: a biased variance differs by percents from an unbiased one
_SPATIAL = {3: (11,), 4: (3, 4), 5: (2, 3, 2)}


def identify(
    module: nn.Module,
    candidates: Mapping[How, Callable[..., Tensor]],
    *,
    channels: int,
    dim: int,
    given: Callable[[Noise, int], Sequence[Tensor]],
    prepare: Callable[..., None],
    call: Callable[..., Any],
) -> tuple[How | None, str]:
    """Which of `candidates` the module computes: (its key, ""), or (None, why it is none of them).

    Args:
        candidates: by key, functions of the tensors of a trial, which are x (N, `channels`, ...) of `dim` dimensions
            and those of `given`.
        given: from a source of noise and N, what the trial takes besides x.
        prepare: puts tensors of the trial where the forward will look for them, in attributes of the module or of its
            children, which are put back afterwards.
        call: runs the forward on the tensors of the trial.
    """
    if channels < 1:
        return None, f"a map of {channels} channels"
    device, dtype = _where(module)
    exact = torch.float32 if device.type == "mps" else torch.float64  # Metal has no float64
    trials = [(training, batch, exact) for training in (True, False) for batch in (2, 1)]
    if dtype != exact:
        trials.append((module.training, 2, dtype))
    generator = torch.Generator("cpu").manual_seed(0)
    left = dict(candidates)
    for training, batch, of in trials:
        noise = functools.partial(_noise, generator, device, of)
        with _alone(device), _kept(module):
            x = 0.1 * noise(batch, channels, *_SPATIAL[dim]) + 0.2  # off zero, and narrow enough for eps to show
            inputs = [t.detach().requires_grad_() for t in (x, *given(noise, batch))]
            copies = [t.detach().cpu().double().requires_grad_() for t in inputs]
            for name, buffer in module._buffers.items():
                if buffer is not None:  # one that has a part in what is computed must show
                    floating = buffer.is_floating_point()
                    module._buffers[name] = noise(*buffer.shape).abs() + 0.5 if floating else buffer.clone()
            for m in (module, *module.children()):
                vars(m)["training"] = training
            prepare(*inputs)
            before = _state(module)
            try:
                y = call(*inputs)
                if not isinstance(y, Tensor) or not y.requires_grad:
                    return None, DIFFERENT
                g = noise(*y.shape)
                grads = torch.autograd.grad(y, inputs, g, allow_unused=True)
            except Exception as error:  # somebody else's code, which this was only a guess about: left as it is
                return None, f"it could not be tried on a small map ({type(error).__name__}: {error})"
            if not _same_state(before, _state(module)):
                return None, "its forward changes its own attributes or buffers"
            found = [y, *grads]
            left = {how: f for how, f in left.items() if _agrees(found, f(*copies), copies, g, inputs[0])}
            if not left:
                return None, DIFFERENT
    return next(iter(left)), ""


def _noise(generator: torch.Generator, device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64)
    return values.to(device=device, dtype=dtype)


def _agrees(found: Sequence[Tensor | None], y: Tensor, copies: list[Tensor], g: Tensor, x: Tensor) -> bool:
    if y.shape != g.shape:
        return False
    wanted = [y, *torch.autograd.grad(y, copies, g.cpu().double())]
    # a narrow dtype is asked for its dtype and for about the right numbers; float64 for the formula
    tolerance = 1e-10 if x.dtype == torch.float64 else 32 * torch.finfo(x.dtype).eps
    for got, want in zip(found, wanted):
        if got is None or got.dtype != x.dtype or got.device != x.device:
            return False
        if not bool((got.cpu().double() - want).abs().max() <= tolerance * want.abs().max()):
            return False
    return True


def _where(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    for t in (*module.parameters(), *module.buffers()):
        if t.is_floating_point():
            return t.device, t.dtype
    return torch.device("cpu"), torch.float32


def why_no_numbers(module: nn.Module) -> str:
    """Empty if every parameter and buffer has a value."""
    for t in (*module.parameters(), *module.buffers()):
        if nn.parameter.is_lazy(t):
            return "not initialised yet; run the model once, then fuse"
        if t.is_meta:
            return "it is on the meta device; give it numbers, then fuse"
    return ""


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Gradients on, autocast off, and the random state as it was afterwards."""
    generators = [device] if device.type in ("cuda", "xpu") else []
    kind = device.type if generators else "cuda"
    with (
        torch.random.fork_rng(generators, device_type=kind),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@contextlib.contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Attributes, parameters and buffers of the module and of its children are as they were afterwards."""
    dicts: list[dict[str, Any]] = [
        d for m in (module, *module.children()) for d in (vars(m), m._parameters, m._buffers, m._modules)
    ]
    saved = [dict(d) for d in dicts]
    try:
        yield
    finally:
        for d, was in zip(dicts, saved):
            for key in [key for key in d if key not in was]:
                del d[key]
            d.update(was)


def _state(module: nn.Module) -> list[Any]:
    """Which objects hang where, and what the module's own buffers hold."""
    state: list[Any] = []
    for m in (module, *module.children()):
        for d in (vars(m), m._parameters, m._buffers, m._modules):
            state.append(dict(d))
    return [*state, {name: None if b is None else b.clone() for name, b in module._buffers.items()}]


def _same_state(before: list[Any], after: list[Any]) -> bool:
    *objects, numbers = before
    *objects_after, numbers_after = after
    for was, now in zip(objects, objects_after):
        if was.keys() != now.keys() or any(was[key] is not now[key] for key in was):
            return False
    return all(b is None or torch.equal(b, numbers_after[name]) for name, b in numbers.items())
