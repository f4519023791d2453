"""Arguments of the resample room: each error names the argument, what was given and what is wanted."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch

from kernels._checks import check_count, check_tensor

Tensor = torch.Tensor


def check_planes(x: Any) -> None:
    """x: a floating (N, C, H, W) tensor with at least one pixel."""
    check_tensor("x", x, "(N, C, H, W)")
    if x.dim() != 4 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, want (N, C, H, W) with at least one pixel")


def check_filter_size(filter_size: Any) -> None:
    """filter_size: an int from 2 to 7."""
    check_count("filter_size", filter_size, least=2)
    if filter_size > 7:
        raise ValueError(f"filter_size: got {filter_size}, want an int from 2 to 7")


def as_padding(padding: Any) -> tuple[int, int, int, int]:
    """padding as (left, right, top, bottom), each >= 0."""
    if type(padding) is int and padding >= 0:  # most calls; the checks below are 1.9 of the 13 us on a tiny tensor
        return padding, padding, padding, padding
    sides: Any = padding if isinstance(padding, Sequence) and not isinstance(padding, str) else (padding,) * 4
    if any(isinstance(side, bool) or not isinstance(side, (int, numbers.Integral)) for side in sides):
        raise TypeError(f"padding: got {padding!r}, want an int or four of them (left, right, top, bottom)")
    if len(sides) != 4:
        raise ValueError(f"padding: got {len(sides)} numbers, want one or four (left, right, top, bottom)")
    if min(sides) < 0:
        raise ValueError(f"padding: got {padding}, want numbers >= 0")
    left, right, top, bottom = (side if isinstance(side, int) else int(side) for side in sides)
    return left, right, top, bottom


def check_room(name: str, value: object, x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """rows, columns: the margins (before, behind) that are mirrored, each smaller than its side of x. `name`, `value`:
    the argument they come from, for the message, formed only then: torch.compile makes no text of symbolic numbers."""
    if max(rows) >= x.shape[2] or max(columns) >= x.shape[3]:
        raise ValueError(
            f"{name}: got {value} for planes of {x.shape[2]} x {x.shape[3]}, want rows > {max(rows)} and columns > "
            f"{max(columns)}: reflection does not repeat the edge"
        )
