"""Arguments of patch_nce_loss: each error names the argument, what was given and what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels._checks import check_flag, check_positive, check_tensor, kind
from kernels._dtypes import in_autocast
from kernels.nce.spec import Layer

Tensor = torch.Tensor

REDUCTIONS = ("none", "mean", "sum")


def check_options(temperature, normalize, detach_keys, decoupled, reduction) -> None:
    check_positive("temperature", temperature)
    for name, value in (("normalize", normalize), ("detach_keys", detach_keys), ("decoupled", decoupled)):
        check_flag(name, value)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, want one of {', '.join(map(repr, REDUCTIONS))}")


def check_rows(name: str, value: Any, least: int = 1) -> None:
    """value: rows of features, (B, S, C) or (S, C), S >= least."""
    check_tensor(name, value, "(B, S, C) or (S, C)")
    if value.dim() not in (2, 3):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, want (B, S, C) or (S, C)")
    if value.shape[-1] == 0 or value.shape[-2] < least:
        rows = "one row" if least == 1 else f"{least} rows"
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, want at least {rows} of at least one number")


def _check_like(name: str, value: Tensor, other: str, q: Tensor) -> None:
    """value: dtype and device of q; inside autocast, which makes float32 of some features and 16 bits of others, any
    dtype that it knows."""
    if value.dtype != q.dtype and not (torch.float64 not in (value.dtype, q.dtype) and in_autocast(q.device.type)):
        raise TypeError(f"{name}: got {value.dtype}, want {other}'s {q.dtype}")
    if value.device != q.device:
        raise ValueError(f"{name}: got device {value.device}, want {other}'s {q.device}")


def check_keys(name: str, k: Any, q_name: str, q: Tensor) -> None:
    """k: shape, dtype (outside autocast) and device of q."""
    check_tensor(name, k, q.shape)
    if k.shape != q.shape:
        raise ValueError(f"{name}: got shape {tuple(k.shape)}, want {q_name}'s {tuple(q.shape)}")
    _check_like(name, k, q_name, q)


def _check_layer(at: str, q, k, negatives, log_weight, similarity_weight) -> tuple[Layer, bool]:
    """The layer's tensors with their batch dimension, and whether it was added."""
    q_name, k_name, n_name = f"q{at}", f"k{at}", f"negatives{at}"
    check_rows(q_name, q)
    check_keys(k_name, k, q_name, q)
    squeezed = q.dim() == 2
    if squeezed:
        q, k = q[None], k[None]
    batch, _, width = q.shape
    if negatives is None:
        if q.shape[1] < 2:
            raise ValueError(
                f"{k_name}: got 1 key a problem, want at least 2 without `negatives`: the other keys are the negatives"
            )
        count = q.shape[1]
    else:
        check_tensor(n_name, negatives, "(M, C) or (B, M, C)")
        shape = tuple(negatives.shape)
        if len(shape) not in (2, 3) or shape[-1] != width or (len(shape) == 3 and shape[0] != batch) or shape[-2] == 0:
            raise ValueError(f"{n_name}: got shape {shape}, want (M, {width}) or ({batch}, M, {width}), M >= 1")
        _check_like(n_name, negatives, q_name, q)
        count = shape[-2]
    wanted = (batch, q.shape[1], count)
    weights = [
        _broadcast(f"{name}{at}", value, wanted, q)
        for name, value in (("log_weight", log_weight), ("similarity_weight", similarity_weight))
    ]
    if weights[1] is not None and weights[1].requires_grad:
        raise ValueError(f"similarity_weight{at}: requires a gradient, want a detached tensor: it is given none")
    return Layer(q, k, negatives, *weights), squeezed


def _broadcast(name: str, value: Any, shape: tuple[int, ...], q: Tensor) -> Tensor | None:
    """value as a view of `shape`. In the dtype of the computation if entries are repeated, so that their gradient is
    summed in that, and rounded once."""
    if value is None:
        return None
    check_tensor(name, value, shape)
    if value.device != q.device:
        raise ValueError(f"{name}: got device {value.device}, want q's {q.device}")
    given = tuple(value.shape)
    if len(given) > len(shape) or any(a != 1 and a != b for a, b in zip(given[::-1], shape[::-1])):
        raise ValueError(f"{name}: got shape {given}, want one that broadcasts to {shape}")
    if given != shape:
        value = value.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return value.expand(shape)


def _per_layer(name: str, value: object, count: int) -> list:
    if value is None:
        return [None] * count
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: got {kind(value)}, want a list of {count}, one entry per layer, as q is a list")
    if len(value) != count:
        raise ValueError(f"{name}: got {len(value)} entries, want {count}, one per layer")
    return list(value)


def check_layers(q, k, negatives, log_weight, similarity_weight) -> tuple[list[Layer], bool, list[bool]]:
    """(layers, whether q is a list, which layers came without batch dimension). q, k and negatives of all layers have
    one dtype: float32 where autocast has mixed them, which loses nothing."""
    is_list = not isinstance(q, Tensor)
    if is_list:
        if not isinstance(q, Sequence) or isinstance(q, str):
            raise TypeError(f"q: got {kind(q)}, want a tensor or a list of tensors")
        if not q:
            raise ValueError("q: got an empty list, want at least one layer")
        others = (("k", k), ("negatives", negatives), ("log_weight", log_weight))
        lists = [_per_layer(name, value, len(q)) for name, value in (*others, ("similarity_weight", similarity_weight))]
        found = [_check_layer(f"[{i}]", *t) for i, t in enumerate(zip(q, *lists))]
    else:
        found = [_check_layer("", q, k, negatives, log_weight, similarity_weight)]
    layers = [layer for layer, _ in found]
    for i, layer in enumerate(layers[1:], 1):
        _check_like(f"q[{i}]", layer.q, "q[0]", layers[0].q)
    dtype = layers[0].q.dtype
    if any(t is not None and t.dtype != dtype for layer in layers for t in layer[:3]):
        layers = [Layer(*(None if t is None else t.float() for t in layer[:3]), *layer[3:]) for layer in layers]
    return layers, is_list, [squeezed for _, squeezed in found]


def row_weights(value, layers: list[Layer], is_list: bool) -> list[Tensor | None]:
    """One (B, S) view or None per layer."""
    values = _per_layer("row_weight", value, len(layers)) if is_list else [value]
    return [
        _broadcast(f"row_weight[{i}]" if is_list else "row_weight", v, tuple(layer.q.shape[:2]), layer.q)
        for i, (v, layer) in enumerate(zip(values, layers))
    ]
