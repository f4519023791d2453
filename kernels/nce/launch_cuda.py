"""Tensors to addresses and plans for the CUDA kernels (csrc/cuda/nce). No autograd, no checks of arguments.

One launch forward and at most one backward serve up to 8 layers, whatever their sizes, negatives, weights and
gradients. Where q wants a gradient, the forward launch leaves that of a row gradient of 1 behind, as the C++ one does.
float32 is multiplied exactly, never as tf32, whatever torch's own products of matrices may be.

A plan holds the launch of all calls with these shapes and options. Launches go to the current stream, nothing is copied
to the host and all memory comes from torch: safe inside CUDA graphs once each plan has run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from kernels import _cuda
from kernels._cuda import DTYPE_CODES, DTYPES, Grid, Launch
from kernels._native import pointer
from kernels.nce.cut_cuda import ROWS_OF_BLOCK, THREADS, Size, cdiv, cut, starts_of
from kernels.nce.spec import Layer, Needs, Spec, new_gradients, new_rows

Tensor = torch.Tensor

MAX_LAYERS = 8  # of one launch: the arrays of csrc/cuda/nce/args.h
MOST = 2**31 - 2**16  # rows or negatives of a launch, whose kernels count them in 32 bits


class Kind(NamedTuple):
    """What of a layer makes a launch another one."""

    shape: torch.Size  # of q
    negatives: torch.Size | None
    log_weight: tuple | None  # strides, then the dtype's code
    similarity_weight: tuple | None
    first_row: int
    wide: bool
    columns: bool  # whether blocks with tiles sum the columns of a gradient: of q forward, of keys backward
    by_rows: bool  # backward: whether there is a gradient to compute row by row
    by_keys: bool  # and by tiles of keys

    @property
    def problems(self) -> int:
        """Negatives shared by all images make one problem of all queries."""
        return 1 if self.negatives is not None and len(self.negatives) == 2 else self.shape[0]

    @property
    def rows(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def keys(self) -> int:
        return (self.shape if self.negatives is None else self.negatives)[-2]


_plans: _cuda.Plans[Launch] = _cuda.Plans()


# ---- what a call is made of ------------------------------------------------------------------------------------------


def _dense(layer: Layer) -> Layer:
    """q, k, negatives contiguous; weights as they are, kernels read any dtype and stride."""
    q, k, negatives, log_weight, similarity_weight = layer
    negatives = None if negatives is None else negatives.contiguous()
    return Layer(q.contiguous(), k.contiguous(), negatives, log_weight, similarity_weight)


def _weight(w: Tensor | None) -> tuple | None:
    return None if w is None else (*w.stride(), DTYPE_CODES[w.dtype])


def _kind(
    layer: Layer, first: int, given: list[int], columns: bool, by_rows: bool = False, by_keys: bool = False
) -> Kind:
    """given: addresses in the order of the struct, of which those of weights and their gradient may be any."""
    q, _, negatives, log_weight, similarity_weight = layer
    addresses = given[0] | given[1] | given[2] | given[5] | given[6] | given[7] | given[8]
    wide = not (addresses | q.shape[2] * q.element_size()) & 15
    shape = None if negatives is None else negatives.shape
    return Kind(q.shape, shape, _weight(log_weight), _weight(similarity_weight), first, wide, columns, by_rows, by_keys)


def _run(
    works: list[tuple[Kind, list[int]]], spec: Spec, x: Tensor, grad: Tensor | None, loss: Tensor | None, stats: Tensor
) -> None:
    """Launches for layers, given with the addresses of their tensors in the order of the struct. grad: backward."""
    total, index = stats.shape[1], x.get_device()
    for i in range(0, len(works), MAX_LAYERS):
        kinds, given = zip(*works[i : i + MAX_LAYERS])
        key = (grad is not None, spec, x.dtype, index, total, kinds)
        launch = _plans.get(key)
        if launch is None:
            launch = _plans[key] = _plan(kinds, spec, x.dtype, index, total, grad is not None)
        missing = (0,) * (MAX_LAYERS - len(kinds))  # arrays have a place for every layer that could be
        addresses = [address for array in zip(*given) for address in (*array, *missing)]
        launch(_cuda.stream(index), *addresses, pointer(grad), pointer(loss), stats.data_ptr())


# ---- plans -----------------------------------------------------------------------------------------------------------


def _plan(kinds: tuple[Kind, ...], spec: Spec, dtype: torch.dtype, index: int, total: int, backward: bool) -> Launch:
    if max(total, *(k.keys for k in kinds)) > MOST:
        raise ValueError(f"q: got {total} rows in all, want them and the negatives of each at most {MOST} on CUDA")
    numbers = _numbers(kinds, spec, total)
    name, template, blocks, shared, most = "backward_rows", DTYPES[dtype], 0, 0, THREADS
    sizes = [_size(k, backward) for k in kinds]
    if any(size.own for size in sizes):
        c = cut(sizes, dtype.itemsize, _cuda.device(index))
        numbers |= {"first_block": c.starts, "tiles": c.tiles, "chunks": c.chunks, "stages": c.stages}
        name, template = "backward" if backward else "forward", f"{template}, {c.columns}, {c.rows}"
        blocks, shared, most = c.blocks, c.shared, c.most_threads
    numbers["tile_blocks"] = blocks
    if backward:
        counts = [cdiv(k.rows, ROWS_OF_BLOCK) if k.by_rows else 0 for k in kinds]
        numbers["first_row_block"] = starts_of(counts)
        blocks += sum(counts)
    grid = Grid(blocks, THREADS, 1, shared)
    return _cuda.launch("nce", name, f"nce::{name}<{template}>", most, index, grid, numbers)


def _size(k: Kind, backward: bool) -> Size:
    """Blocks own queries forward, keys backward where these or log weights want a gradient."""
    queries = k.rows // k.problems
    if backward:
        return Size(k.problems, k.keys if k.by_keys else 0, queries, k.shape[2], k.columns)
    return Size(k.problems, queries, k.keys, k.shape[2], k.columns)


def _numbers(kinds: tuple[Kind, ...], spec: Spec, total: int) -> dict[str, Any]:
    none = (0, 0, 0, 0)
    logs, similarities = ([getattr(k, name) or none for k in kinds] for name in ("log_weight", "similarity_weight"))
    numbers: dict[str, Any] = {"total": total}
    for name, weights in (("log", logs), ("similarity", similarities)):
        for place, value in enumerate(("b", "i", "j", "dtype")):
            numbers[f"{name}_{value}"] = [w[place] for w in weights]
    none_yet = ("first_block", "tiles", "chunks", "first_row_block", "stages", "tile_blocks")
    numbers |= dict.fromkeys(none_yet, 0)
    return numbers | {
        "queries": [k.rows // k.problems for k in kinds],
        "keys": [k.keys for k in kinds],
        "width": [k.shape[2] for k in kinds],
        "image_queries": [k.shape[1] for k in kinds],
        "first_row": [k.first_row for k in kinds],
        "rows": [k.rows for k in kinds],
        "wide": [k.wide for k in kinds],
        "layers": len(kinds),
        "normalize": spec.normalize,
        "decoupled": spec.decoupled,
        "scale": 1.0 / spec.temperature,
    }


# ---- public ----------------------------------------------------------------------------------------------------------


def forward(layers: list[Layer], spec: Spec, need_q: list[bool]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses (R,), statistics (3, R), and per layer the gradient of q for a row gradient of 1, float32 (B, S, C), or an
    empty tensor where it is not needed."""
    layers = [_dense(layer) for layer in layers]
    loss, stats = new_rows(layers)
    units = [
        torch.empty_like(layer.q, dtype=torch.float32) if need else loss.new_empty(0)
        for layer, need in zip(layers, need_q)
    ]
    works, first = [], 0
    for layer, unit, need in zip(layers, units, need_q):
        if not layer.rows:
            continue
        given = [*map(pointer, layer), unit.data_ptr() if need else 0, 0, 0, 0, 0]
        works.append((_kind(layer, first, given, columns=need), given))
        first += layer.rows
    _run(works, spec, layers[0].q, None, loss, stats)
    return loss, stats, units


def backward(
    grad: Tensor, layers: list[Layer], stats: Tensor, dq_unscaled: list[Tensor], needs: list[Needs], spec: Spec
) -> list[tuple]:
    """Per layer the gradients of q, k, negatives (their dtypes) and log_weight (float32, (B, S, M)), None where not
    needed, from that of the losses, (R,)."""
    layers = [_dense(layer) for layer in layers]
    grad = grad.to(torch.float32).contiguous()
    found = [new_gradients(layer, need) for layer, need in zip(layers, needs)]
    works, first = [], 0
    for layer, unit, grads in zip(layers, dq_unscaled, found):
        dq, dk, dnegatives, dlog_weight = grads
        by_rows = dq is not None or (dk is not None and layer.negatives is not None)
        columns = (dk if layer.negatives is None else dnegatives) is not None
        by_keys = columns or dlog_weight is not None
        if layer.rows and (by_rows or by_keys):
            given = [*map(pointer, layer), unit.data_ptr() if dq is not None else 0, *map(pointer, grads)]
            works.append((_kind(layer, first, given, columns, by_rows, by_keys), given))
        first += layer.rows
    _run(works, spec, layers[0].q, grad, None, stats)
    return found
