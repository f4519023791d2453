"""Argument checks shared by the operators: each names the argument, what was given and what is wanted."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def kind(value: object) -> str:
    """What was given, for the message of a TypeError."""
    if type(value).__module__.startswith("torch.fx"):
        return (
            f"a {type(value).__name__} of torch.fx, whose symbolic_trace cannot follow this call (torch.export can; "
            "or trace the model before kernels.fuse)"
        )
    return str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def check_tensor(name: str, value: object, shape: object) -> None:
    """value: a dense floating tensor. `shape`: for the message, formed only then (torch.compile traces the rest)."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {kind(value)}, want a tensor of shape {shape}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: got {value.dtype}, want float32, bfloat16, float16 or float64")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}, want a dense tensor")


def check_finite(name: str, value: Any) -> None:
    """value: a finite real number, of Python or numpy; callers store float(value)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):  # the last is slow, others first
        raise TypeError(f"{name}: got {kind(value)}, want a number")
    # not math.isfinite: torch.compile cannot trace it for a symbolic number
    if not -math.inf < value < math.inf:  # pyright: ignore[reportOperatorIssue] (the stub of Real compares with Reals)
        raise ValueError(f"{name}: got {value}, want a finite number")


def check_positive(name: str, value: Any) -> None:
    """value: a finite number > 0."""
    check_finite(name, value)
    if value <= 0:
        raise ValueError(f"{name}: got {value}, want a number > 0")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """value: an int >= least, of Python or numpy; callers store int(value)."""
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name}: got {kind(value)}, want an int")
    if value < least:
        raise ValueError(f"{name}: got {value}, want an int >= {least}")


def check_flag(name: str, value: object) -> None:
    """value: True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {kind(value)}, want True or False")
