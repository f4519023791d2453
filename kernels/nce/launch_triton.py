"""Tensors to tiles and grids for the triton kernels (triton_forward.py, triton_backward.py).

No autograd, no checks of arguments. One launch forward and one or two backward serve all layers of one kind, up to
MAX_LAYERS: kinds differ in what is given (negatives, weights) and in which gradients are wanted. Tile sizes follow from
shape and dtype; nothing is measured at run time. Launches go to the current stream of the tensors' device, nothing is
copied to the host or from it and all memory comes from torch: safe inside CUDA graphs once each kernel has run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from kernels import _triton, backends
from kernels._triton import cdiv, encode, on, pow2, sms_of
from kernels.nce import triton_backward, triton_forward
from kernels.nce.spec import Layer, Needs, Spec, new_gradients, new_rows

Tensor = torch.Tensor

MAX_LAYERS = 8  # of one launch


class Config(NamedTuple):
    """Tiles of one launch: queries, keys, steps of the width in a product, columns of a gradient."""

    block_q: int
    block_n: int
    block_k: int
    block_c: int
    warps: int
    stages: int


class Work(NamedTuple):
    """One layer of a launch: its number in the call, its tensors (dense), its first row among all layers' rows."""

    index: int
    layer: Layer
    first: int

    @property
    def in_image(self) -> bool:
        return self.layer.negatives is None

    @property
    def shared(self) -> bool:
        return self.layer.negatives is not None and self.layer.negatives.dim() == 2

    @property
    def problems(self) -> int:
        """Negatives shared by all images make one problem of all queries."""
        return 1 if self.shared else self.layer.q.shape[0]

    @property
    def num_queries(self) -> int:
        """Queries of a problem."""
        return self.layer.rows // self.problems

    @property
    def width(self) -> int:
        return self.layer.q.shape[-1]


def precision(dtype: torch.dtype) -> str:
    """How float32 tiles are multiplied: exactly, unless torch's own products of matrices may be tf32."""
    if dtype != torch.float32:
        return "ieee"  # 16-bit tiles are multiplied in one way only
    settings = torch.backends.cuda.matmul
    # since torch 2.9 there are two ways to set it, and reading the old one fails after the new one was used
    allowed = settings.fp32_precision == "tf32" if hasattr(settings, "fp32_precision") else settings.allow_tf32
    return "tf32" if allowed else "ieee"


# ---- tiles -----------------------------------------------------------------------------------------------------------

# (queries, keys) of a tile and warps, from the smallest to the largest; by the dtype's bits. Registers of a thread
# / bytes of shared memory by ptxas for sm_80, sm_90, sm_100, five layers of width 256, normalised:
#               bfloat16                                    float32
#   FORWARD     (16, 64)   96, 80, 80 / 10240               128, 80, 80 / 20480
#               (64, 64)   168, 123, 125 / 16384 to 24592   128, 128, 128 / 32768
#   ROWS        (16, 64)   186, 172, 171 / 34816            128, 143, 128 / 36864
#               the larger 210, 207, 205 / 36864            128, 128, 128 / 20480
#   KEYS        (64, 16)   119, 116, 128 / 34816            128, 128, 128 / 36864
#               the larger 202, 201, 204 / 36864            128, 128, 128 / 20480
# None spilled in bfloat16, at most 64 bytes in float32, where ptxas holds to 128 registers to fit one more program.
FORWARD = {16: ((16, 64, 4), (32, 64, 4), (64, 64, 4)), 32: ((16, 64, 8), (32, 64, 8), (64, 64, 8))}
ROWS = {16: ((16, 64, 8), (32, 64, 8)), 32: ((16, 64, 8), (32, 32, 8))}
KEYS = {16: ((64, 16, 8), (64, 32, 8)), 32: ((64, 16, 8), (32, 32, 8))}
COLUMNS = {16: 256, 32: 128}  # of a gradient that a program computes
BLOCK_K, STAGES = 32, 3


def _choose(found: Sequence[tuple], side: int, programs: Callable[[int], int], sms: int) -> tuple:
    """The largest tile that still gives every multiprocessor two programs, else the smallest."""
    return next((f for f in reversed(found) if programs(f[side]) >= 2 * sms), found[0])


def _config(found: Sequence[tuple], side: int, work: list[Work], columns: int, x: Tensor) -> Config:
    """columns: most of a gradient that a program computes, 0 if it has none to compute."""
    block_c = min(max(pow2(max(w.width for w in work)), 16), columns) if columns else 0

    def programs(block: int) -> int:
        return sum(_programs(w, side, block, block_c) for w in work)

    block_q, block_n, warps = _choose(found, side, programs, sms_of(x))
    return Config(block_q, block_n, BLOCK_K, block_c, warps, STAGES)


def _programs(w: Work, side: int, block: int, block_c: int) -> int:
    tiles = cdiv(w.layer.num_negatives if side else w.num_queries, block)
    return w.problems * tiles * (cdiv(w.width, block_c) if block_c else 1)


# ---- arguments -------------------------------------------------------------------------------------------------------


def _dense(layer: Layer) -> Layer:
    """q, k, negatives contiguous; weights as they are, kernels read any dtype and stride."""
    q, k, negatives, log_weight, similarity_weight = layer
    negatives = None if negatives is None else negatives.contiguous()
    return Layer(q.contiguous(), k.contiguous(), negatives, log_weight, similarity_weight)


def _works(layers: list[Layer]) -> list[Work]:
    found, first = [], 0
    for index, layer in enumerate(layers):
        if layer.rows:
            found.append(Work(index, _dense(layer), first))
        first += layer.rows
    return found


def _kinds(works: list[Work], also: Callable[[Work], tuple] = lambda w: ()) -> list[list[Work]]:
    """The layers in groups that one launch can serve. also: what else must be alike."""
    kinds: dict[tuple, list[Work]] = {}
    for w in works:
        dtypes = (None if t is None else t.dtype for t in w.layer[3:])
        kinds.setdefault((w.in_image, w.shared, *dtypes, *also(w)), []).append(w)
    return [kind[i : i + MAX_LAYERS] for kind in kinds.values() for i in range(0, len(kind), MAX_LAYERS)]


def _each(values) -> tuple:
    """One value per layer; one for all if they are alike."""
    values = tuple(values)
    return values[:1] if len(set(values)) == 1 else values


def _sizes(work: list[Work], counts: list[int]) -> tuple:
    """(first program, queries of a problem, keys, width, queries of an image, first row) of each layer."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return (
        tuple(map(encode, starts)),
        _each(encode(w.num_queries) for w in work),
        _each(encode(w.layer.num_negatives) for w in work),
        _each(w.width for w in work),  # triton should know when rows begin at multiples of 16
        _each(encode(w.layer.q.shape[1]) for w in work),
        tuple(encode(w.first) for w in work),
    )


def _tensors(values) -> tuple | None:
    values = tuple(values)
    return None if values[0] is None else values


def _strides(weights: tuple | None) -> tuple | None:
    return None if weights is None else tuple(_each(w.stride(d) for w in weights) for d in range(3))


class _Call:
    """What the kernels take, for one group of layers."""

    def __init__(self, work: list[Work], spec: Spec, total: int) -> None:
        self.work = work
        five = [_tensors(w.layer[i] for w in work) for i in range(5)]
        self.given = five
        self.strides = tuple(map(_strides, five[3:]))
        self.scalars = (total, 1.0 / spec.temperature)
        dtype = work[0].layer.q.dtype
        self.constants = {
            "IN_IMAGE": work[0].in_image,
            "SHARED": work[0].shared,
            "NORMALIZE": spec.normalize,
            "PRECISION": precision(dtype),
            "UPCAST": backends.interpreting() and dtype != torch.float32,
        }

    def run(self, kernel, tiles: dict[int, tuple], side: int, *args, **constants) -> None:
        """side: which of the tile's sides cuts a problem into programs, 0 queries or 1 keys."""
        x = self.work[0].layer.q
        bits = 8 * x.element_size()
        columns = 0 if tiles is FORWARD else COLUMNS[bits]
        config = _config(tiles[bits], side, self.work, columns, x)
        counts = [_programs(w, side, config[side], config.block_c) for w in self.work]
        blocks = {"BLOCK_Q": config.block_q, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
        if columns:
            blocks["BLOCK_C"] = config.block_c
        with on(x):
            _triton.run(
                kernel,
                sum(counts),
                config.warps,
                *(*self.given, *args, _sizes(self.work, counts), *self.strides, *self.scalars),
                stages=config.stages,
                **(self.constants | blocks | constants),
            )


# ---- public ----------------------------------------------------------------------------------------------------------


def forward(layers: list[Layer], spec: Spec, need_q: list[bool]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses (R,), statistics (3, R), and per layer an empty tensor: the gradient of q is left to `backward`."""
    loss, stats = new_rows(layers)
    for work in _kinds(_works(layers)):
        call = _Call(work, spec, loss.numel())
        call.run(triton_forward.nce_forward, FORWARD, 0, loss, stats, DECOUPLED=spec.decoupled)
    return loss, stats, [torch.empty(0, dtype=torch.float32, device=loss.device) for _ in layers]


def backward(
    grad: Tensor, layers: list[Layer], stats: Tensor, dq_unscaled: list[Tensor], needs: list[Needs], spec: Spec
) -> list[tuple]:
    """Per layer the gradients of q, k, negatives (their dtypes) and log_weight (float32, (B, S, M)), None where not
    needed, from that of the losses, (R,)."""
    grad = grad.to(torch.float32).contiguous()
    found = [new_gradients(layer, need) for layer, need in zip(layers, needs)]
    works = _works(layers)
    if not works:
        return found

    def by_rows(w: Work) -> tuple:
        dq, dk, _, dlog_weight = found[w.index]
        return dq, None if w.in_image else dk, dlog_weight

    def by_keys(w: Work) -> Tensor | None:
        return found[w.index][1 if w.in_image else 2]

    def wanted(w: Work) -> tuple:
        return tuple(t is not None for t in by_rows(w))

    for work in _kinds([w for w in works if any(wanted(w))], wanted):
        call = _Call(work, spec, grad.numel())
        outputs = [_tensors(by_rows(w)[i] for w in work) for i in range(3)]
        call.run(triton_backward.nce_backward_rows, ROWS, 0, grad, stats, *outputs)
    for work in _kinds([w for w in works if by_keys(w) is not None]):
        call = _Call(work, spec, grad.numel())
        outputs = tuple(by_keys(w) for w in work)
        call.run(triton_backward.nce_backward_keys, KEYS, 1, grad, stats, outputs)
    return found
