"""What it takes to try out a module of somebody else's that draws random numbers and changes at its first call."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

_SIMPLE = (bool, int, float, str, type(None))
# torch's own, and what says nothing about what a forward computes
_NOT_PLAIN = {*vars(nn.Module()), "fuse_report", "_compiled_call_impl", "_is_replica", "_former_parameters"}


def attributes(module: nn.Module) -> dict[str, object]:
    """The plain attributes of a module, lists as copies."""
    return {
        name: list(value) if type(value) is list else value
        for name, value in vars(module).items()
        if name not in _NOT_PLAIN and not name.startswith("_fused_")
    }


def as_now(then: Mapping[Any, object], now: Mapping[Any, object]) -> bool:
    """Whether nothing has changed: simple values and lists of them by value, other objects by identity."""
    return then.keys() == now.keys() and all(_same(value, now[name]) for name, value in then.items())


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) in _SIMPLE and a == b


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """A deep copy with no hook on it or on what is inside: they would be called, or what they hold be copied."""
    hooks = [
        value
        for part in module.modules()
        for name, value in vars(part).items()
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict)
    ]
    return copy.deepcopy(module, {id(value): type(value)() for value in hooks})


def random_state(device: torch.device) -> tuple[bytes, ...]:
    """Of Python's, NumPy's and torch's default generators; in bytes, which can be compared."""
    found = [pickle.dumps(random.getstate()), pickle.dumps(np.random.get_state(legacy=False))]
    found.append(torch.get_rng_state().numpy().tobytes())
    if device.type == "cuda":
        found.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return tuple(found)


def set_random_state(state: tuple[bytes, ...], device: torch.device) -> None:
    pythons, numpys, *torchs = state
    random.setstate(pickle.loads(pythons))
    np.random.set_state(pickle.loads(numpys))
    tensors = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in torchs]
    torch.set_rng_state(tensors[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors[1], device)


@contextlib.contextmanager
def random_left_alone(device: torch.device) -> Iterator[None]:
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
