"""Arguments of the patches room: each error names the argument, what was given and what is wanted."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kernels import _guard
from kernels._checks import check_tensor, kind
from kernels.patches.spec import positions

Tensor = torch.Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_map(name: str, x: Any) -> None:
    """x: a floating (B, C, *spatial) tensor with at least one position."""
    check_tensor(name, x, "(B, C, *spatial)")
    if x.dim() < 3 or positions(x) == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, want (B, C, *spatial) with at least one position")


def check_features(features: object) -> None:
    """features: a list or tuple of at least one map, all on one device."""
    if not isinstance(features, (list, tuple)):
        hint = "; put a single map in a list" if isinstance(features, Tensor) else ""
        given = "a tensor" if isinstance(features, Tensor) else kind(features)
        raise TypeError(f"features: got {given}, want a list of maps (B, C, *spatial){hint}")
    if not features:
        raise ValueError("features: got an empty list, want at least one map (B, C, *spatial)")
    for layer, x in enumerate(features):
        check_map(f"features[{layer}]", x)
        if x.device != features[0].device:
            raise ValueError(
                f"features[{layer}]: got device {x.device}, want that of features[0], {features[0].device}"
            )


def check_num_patches(num_patches: object) -> None:
    """num_patches: an int >= 1, of Python or numpy, or None."""
    if num_patches is None:
        return
    if isinstance(num_patches, bool) or not isinstance(num_patches, (int, numbers.Integral)):
        raise TypeError(f"num_patches: got {kind(num_patches)}, want an int or None")
    if num_patches < 1:
        raise ValueError(f"num_patches: got {num_patches}, want an int >= 1, or None for all positions")


def check_generator(generator: object) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {kind(generator)}, want a torch.Generator")


def check_fits(num_patches: int | None, layer: int, x: Tensor) -> None:
    """num_patches: no more than the map has positions."""
    if num_patches is not None and num_patches > positions(x):
        size = " x ".join(str(side) for side in x.shape[2:])
        raise ValueError(
            f"num_patches: got {num_patches}, want at most {positions(x)}, the positions of features[{layer}] "
            f"({size}); None takes all"
        )


def check_range(name: str, ids: Tensor, x: Tensor) -> None:
    """Every id is a position of x. Reads the ids: not for a device the host would have to wait for."""
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= positions(x):
        raise ValueError(
            f"{name}: got {low if low < 0 else high}, want positions in [0, {positions(x)}) of a map of shape "
            f"{tuple(x.shape)}"
        )


def as_ids(name: str, ids: object, x: Tensor) -> Tensor:
    """ids as int64 (P,) on x's device, checked; their range only where they are still on the host and x is not (for
    maps on the CPU see `check_positions`)."""
    if not isinstance(ids, (Tensor, np.ndarray, Sequence)) or isinstance(ids, (str, bytes)):
        raise TypeError(f"{name}: got {kind(ids)}, want integer positions of shape (P,)")
    if torch.compiler.is_compiling() and isinstance(ids, (list, tuple)):
        ids = torch.tensor(ids)  # torch.compile does not trace the NumPy calls below
    if not isinstance(ids, Tensor):
        array = np.asarray(ids)
        if array.size and array.dtype.kind not in "iu":  # of an empty list NumPy makes floats
            raise TypeError(f"{name}: got {array.dtype}, want integers")
        ids = torch.from_numpy(np.array(array, dtype=np.int64, order="C"))
    if ids.dtype not in _INTEGERS:
        raise TypeError(f"{name}: got {ids.dtype}, want integers")
    if ids.dim() != 1:
        raise ValueError(f"{name}: got shape {tuple(ids.shape)}, want (P,)")
    if ids.shape[0] == 0:
        raise ValueError(f"{name}: got no positions, want at least one")
    if ids.device == x.device and ids.dtype == torch.int64:  # most calls
        return ids
    if ids.device.type == "cpu" and x.device.type != "cpu" and not torch.compiler.is_compiling():
        if _guard.addressable(ids):
            check_range(name, ids, x)
    return ids.to(x.device, torch.int64, non_blocking=True)


def check_positions(name: str, ids: Tensor, x: Tensor) -> None:
    """Every id is a position of x, where x is on the CPU. The C++ operator looks itself, also at what torch.compile
    traced: this is for those that do not, and where its names would be others."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and _guard.addressable(ids):
        check_range(name, ids, x)


def given_ids(ids: object, features: Sequence[Tensor]) -> list[Tensor]:
    """One tensor of positions for each map."""
    if not isinstance(ids, (list, tuple)):
        given = "a tensor" if isinstance(ids, Tensor) else kind(ids)
        raise TypeError(f"ids: got {given}, want a list with the positions (P,) of each map, or None")
    if len(ids) != len(features):
        raise ValueError(f"ids: got {len(ids)}, want one for each of the {len(features)} maps in features")
    return [as_ids(f"ids[{layer}]", at, x) for layer, (at, x) in enumerate(zip(ids, features))]
