"""Arguments of the norm room: each error names the argument, what was given and what is wanted."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from kernels._checks import FLOATING, check_count, check_finite, check_tensor, kind
from kernels._dtypes import in_autocast
from kernels.norm.spec import ACTIVATIONS, Spec

Tensor = torch.Tensor


def check_input(op: str, x: Any, *, per_plane: bool, name: str = "x") -> None:
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


def check_matches(name: str, value: object, shape: tuple, x: Tensor, *, any_float: bool) -> None:
    """value: None, or a floating tensor of this shape on x's device; of x's dtype unless `any_float`."""
    if value is None:
        return
    if not isinstance(value, Tensor):
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


def check_per_sample(name: str, value: object, x: Tensor) -> None:
    """value: a floating (N, C) tensor on x's device."""
    shape = tuple(x.shape[:2])
    if value is None:
        raise TypeError(f"{name}: got None, want a tensor of shape (N, C) = {shape}")
    check_matches(name, value, shape, x, any_float=True)


def check_activation(activation: object, negative_slope: object) -> None:
    """activation: one of the known names; negative_slope: a finite number."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, want one of {', '.join(map(repr, ACTIVATIONS))}")
    check_finite("negative_slope", negative_slope)


def check_padding(padding: Any, x: Tensor) -> None:
    """padding, more than 0: reflection needs a 4-D x with more rows and columns than that."""
    if x.dim() != 4:
        raise ValueError(f"padding: got {padding} for x of shape {tuple(x.shape)}, want 0 unless x is (N, C, H, W)")
    if padding >= min(x.shape[2:]):
        raise ValueError(
            f"padding: got {padding} for planes of {x.shape[2]} x {x.shape[3]}, want less than both: "
            "reflection does not repeat the edge"
        )


def check_style(style: Tensor, content: Tensor) -> None:
    """style, a checked input like content: as many planes, of its dtype (inside autocast: any) and on its device."""
    if style.shape[:2] != content.shape[:2]:
        raise ValueError(
            f"style: got shape {tuple(style.shape)}, want the content's first two sizes {tuple(content.shape[:2])}"
        )
    if style.dtype != content.dtype and not in_autocast(content.device.type):
        raise TypeError(f"style: got {style.dtype}, want the content's {content.dtype}")
    if style.device != content.device:
        raise ValueError(f"style: got device {style.device}, want the content's {content.device}")


def check_alpha(alpha: Any) -> None:
    """alpha: a number in [0, 1]."""
    check_finite("alpha", alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: got {alpha}, want a number in [0, 1]")


def as_spec(
    kind: int,
    x: Tensor,
    eps: float,
    offset: float,
    activation: str,
    negative_slope: float,
    residual: Tensor | None,
    padding: int,
) -> Spec:
    """The options of a call on x, checked, and its residual too."""
    plain = type(eps) is float and type(activation) is str and type(negative_slope) is float and type(padding) is int
    if plain and not torch.compiler.is_compiling():  # a quarter of what a call on a tiny tensor costs
        spec = _known_options(kind, eps, offset, activation, negative_slope, padding)
    else:
        spec = _options(kind, eps, offset, activation, negative_slope, padding)
    if padding:
        check_padding(padding, x)
    if residual is not None:
        check_matches("residual", residual, tuple(x.shape), x, any_float=in_autocast(x.device.type))
    return spec


def _options(kind: int, eps: float, offset: float, activation: str, negative_slope: float, padding: int) -> Spec:
    """The options checked, all but whether the padding suits a plane."""
    check_finite("eps", eps)
    if eps < 0:
        raise ValueError(f"eps: got {eps}, want a number >= 0")
    check_activation(activation, negative_slope)
    check_count("padding", padding, least=0)
    padding = padding if isinstance(padding, int) else int(padding)  # a symbolic one stays what it is
    return Spec(kind, float(eps), offset, ACTIVATIONS.index(activation), float(negative_slope), padding)


_known_options = functools.lru_cache(maxsize=1024)(_options)
