"""Argument checks shared by the operators: each names the argument, what was given and what is wanted."""

from __future__ import annotations

import math
import numbers

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


def check_norm_input(op: str, x: object, *, per_plane: bool, name: str = "x") -> None:
    """x: a floating (N, C, *spatial) tensor with more than one element per statistics group."""
    check_tensor(name, x, "(N, C, *spatial)")
    if x.dim() < 3:
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, want (N, C, *spatial) with at least one spatial dimension"
        )
    shape = x.shape
    if per_plane:
        count, what = math.prod(shape[2:]), "spatial element"
    else:
        count, what = math.prod(shape[1:]), "element in each sample"
    if count <= 1 and (count == 0 or shape[0]):
        raise ValueError(
            f"{name}: got shape {tuple(shape)}, want more than 1 {what}: {op} has no statistics of one value"
        )


def check_matches(name: str, value: object, shape: tuple, x: torch.Tensor, *, any_float: bool) -> None:
    """value: None, or a floating tensor of this shape on x's device; of x's dtype unless `any_float`."""
    if value is None:
        return
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: got {kind(value)}, want a tensor of shape {shape}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, want {shape}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}, want a dense tensor")
    if any_float:
        if value.dtype not in FLOATING:
            raise TypeError(f"{name}: got {value.dtype}, want a floating dtype")
    elif value.dtype != x.dtype:
        raise TypeError(f"{name}: got {value.dtype}, want x's {x.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name}: got device {value.device}, want x's {x.device}")


def check_finite(name: str, value: object) -> None:
    """value: a finite real number, of Python or numpy; callers store float(value)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):  # the last is slow, others first
        raise TypeError(f"{name}: got {kind(value)}, want a number")
    if not -math.inf < value < math.inf:  # not math.isfinite: torch.compile cannot trace it for a symbolic number
        raise ValueError(f"{name}: got {value}, want a finite number")


def check_positive(name: str, value: object) -> None:
    """value: a finite number > 0."""
    check_finite(name, value)
    if value <= 0:
        raise ValueError(f"{name}: got {value}, want a number > 0")


def check_count(name: str, value: object, least: int = 1) -> None:
    """value: an int >= least, of Python or numpy; callers store int(value)."""
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name}: got {kind(value)}, want an int")
    if value < least:
        raise ValueError(f"{name}: got {value}, want an int >= {least}")


def check_flag(name: str, value: object) -> None:
    """value: True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {kind(value)}, want True or False")


def check_activation(activation: object, negative_slope: object, known: tuple[str, ...]) -> None:
    """activation: one of the known names; negative_slope: a finite number."""
    if activation not in known:
        raise ValueError(f"activation: got {activation!r}, want one of {', '.join(map(repr, known))}")
    check_finite("negative_slope", negative_slope)


def check_padding(padding: object, x: torch.Tensor) -> None:
    """padding: an int >= 0; reflection needs a 4-D x with more rows and columns than that."""
    check_count("padding", padding, least=0)
    if padding == 0:
        return
    if x.dim() != 4:
        raise ValueError(f"padding: got {padding} for x of shape {tuple(x.shape)}, want 0 unless x is (N, C, H, W)")
    if padding >= min(x.shape[2:]):
        raise ValueError(
            f"padding: got {padding} for planes of {x.shape[2]} x {x.shape[3]}, want less than both: "
            "reflection does not repeat the edge"
        )
