"""Tensors to tiles and grids for the triton kernels (triton_forward.py, triton_backward.py).

No autograd, no checks of arguments.

Tile sizes follow from shape, dtype and the number of multiprocessors; nothing is measured at run time. Launches go to
the current stream of the tensors' device, nothing is copied to the host and all memory comes from torch: safe inside
CUDA graphs once each kernel has run.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from kernels import _triton
from kernels._layout import dense, is_channels_last
from kernels._triton import cdiv, on, pow2, sms_of
from kernels.norm import triton_backward, triton_forward
from kernels.norm.spec import LAYER_STD, Spec, new_output, new_stats

Tensor = torch.Tensor

# Elements of the largest tiles held in registers. Registers per thread at 16 warps, which leave 128, by ptxas for sm_90
# (none spilled): forward 51 to 80, backward with its two tensors 103 to 128. A forward tile of 32768 at 32 warps, which
# leave 64, spills 48 bytes with tanh and 80 channels last; padded gradients take a quarter, see `_backward_config`.
RESIDENT_FORWARD = 16384
RESIDENT_BACKWARD = 16384
MAX_CHUNKS = 512  # of one plane
MERGE_IN_APPLY = 512  # partial results (12 bytes each) a program may merge itself; beyond, a launch more costs less


class Config(NamedTuple):
    """How one call is cut. resident: planes fit their tile. Else each is cut into `chunks` chunks of `tiles` tiles."""

    resident: bool
    block_c: int
    block_l: int
    warps: int
    chunks: int = 1
    tiles: int = 1

    @property
    def merge(self) -> bool:
        """Whether the second sweep merges partial results itself."""
        return self.block_c * self.chunks <= MERGE_IN_APPLY


def _pow2_below(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


def _programs(n: int, c: int, block_c: int, channels_last: bool) -> int:
    return n * cdiv(c, block_c) if channels_last else cdiv(n * c, block_c)


def _warps(elements: int, per_thread: int) -> int:
    return min(max(elements // (32 * per_thread), 1), 32)


@functools.lru_cache(maxsize=4096)
def configure(
    n: int, c: int, length: int, itemsize: int, channels_last: bool, sms: int, *, resident: int, per_thread: int
) -> Config:
    """The heuristic. resident: elements of the largest tile that may hold whole planes, 0 for a kind whose groups are
    no planes. per_thread: elements of a tile each thread holds."""
    # Channels last, a tile is as many channels wide as 32, 64 or 128 bytes hold: memory moves 32 at a time.
    widths = [min(pow2(c), b // itemsize) for b in (128, 64, 32)] if channels_last else [1]
    block_l = pow2(length)
    tile = widths[-1] * block_l
    if tile <= resident:
        # planes share a tile while there are enough of them to keep every multiprocessor busy
        most = max(2048 // tile, 1)
        spare = _pow2_below(_programs(n, c, widths[-1], channels_last) // (2 * sms))
        block_c = min(widths[-1] * min(most, spare), pow2(c if channels_last else n * c))
        tile = block_c * block_l
        return Config(True, block_c, block_l, _warps(tile, per_thread if tile <= 4096 else 32))
    if not channels_last and length < 2048:  # layer norm of short planes
        widths = [min(pow2(n * c), 2048 // block_l)]
    found = [_chunks(n, c, length, channels_last, sms, width, per_thread) for width in widths]
    return next((f for f in found if f.merge), found[0])  # the widest that need no launch to merge partial results


def _chunks(n: int, c: int, length: int, channels_last: bool, sms: int, block_c: int, per_thread: int) -> Config:
    """Chunks of tiles `block_c` wide: the largest tiles that give every multiprocessor four programs."""
    for tile in (8192, 4096, 2048):
        block_l = min(max(tile // block_c, 1), pow2(length))
        pieces = cdiv(length, block_l)
        if tile <= 256 * per_thread and _programs(n, c, block_c, channels_last) * pieces >= 4 * sms:
            break
    tiles = cdiv(pieces, MAX_CHUNKS)
    return Config(False, block_c, block_l, _warps(block_c * block_l, per_thread), cdiv(pieces, tiles), tiles)


def _config(x: Tensor, length: int, channels_last: bool, resident: int, per_thread: int) -> Config:
    tiles = {"resident": resident, "per_thread": per_thread}
    return configure(x.shape[0], x.shape[1], length, x.element_size(), channels_last, sms_of(x), **tiles)


def _parameter(p: Tensor | None) -> tuple[Tensor | None, int]:
    """scale or shift, and its stride over samples. Kernels read any dtype, and columns of a wider matrix in place."""
    if p is None:
        return None, 0
    if p.stride(-1) != 1:
        p = p.contiguous()
    return p, p.stride(0) if p.dim() == 2 else 0


class _Problem:
    """x made dense, and its sizes. Kernels take sizes, strides and scalars by name: most take a dozen."""

    def __init__(self, x: Tensor, kind: int, pad: int) -> None:
        self.channels_last = is_channels_last(x)
        self.x = dense(x, self.channels_last)
        shape = self.x.shape
        self.n, self.c = shape[0], shape[1]
        self.planes = self.n * self.c
        self.length = math.prod(shape[2:])
        self.pad = pad
        # 0 where rows do not matter: so their sizes compile no kernel again
        self.h, self.w = (shape[2], shape[3]) if pad else (0, 0)
        self.out_length = (self.h + 2 * pad) * (self.w + 2 * pad) if pad else self.length
        # largest offset inside a sample (channels last) or plane, tile overhang included
        self.wide = (self.out_length + 65536) * (self.c if self.channels_last else 1) >= 2**31
        self.group = self.c if kind == LAYER_STD else 1
        self.count = float(self.group * self.length)  # elements of a statistics group

    def programs(self, config: Config, pieces: int) -> int:
        return _programs(self.n, self.c, config.block_c, self.channels_last) * pieces

    def partials(self, rows: int, chunks: int) -> Tensor:
        return torch.empty((rows, self.planes, chunks), dtype=torch.float32, device=self.x.device)

    def sizes(self) -> dict:
        return {"planes": self.planes, "C": self.c, "L": self.length}

    def output_sizes(self) -> dict:
        return {"out_length": self.out_length, "H": self.h, "W": self.w}

    def layout(self, config: Config) -> dict:
        return {
            "CHANNELS_LAST": self.channels_last,
            "WIDE": self.wide,
            "BLOCK_C": config.block_c,
            "BLOCK_L": config.block_l,
        }


def _strides(n: int = 0, c: int = 0, row: int = 0, column: int = 0) -> dict:
    return {"rn": n, "rc": c, "rh": row, "rw": column}


def _residual(p: _Problem, residual: Tensor | None) -> tuple[Tensor | None, dict, bool]:
    """The residual, its strides, and whether they are needed. The inside of a padded map, or a map of the other memory
    format, is read where it is."""
    if residual is None:
        return None, _strides(), False
    if residual.dim() == 4 and residual.stride() != p.x.stride():
        p.h, p.w = residual.shape[2:]
        reach = sum((size - 1) * stride for size, stride in zip(residual.shape[2:], residual.stride()[2:]))
        p.wide = p.wide or reach >= 2**30  # masked positions reach further than this
        return residual, _strides(*residual.stride()), True
    return dense(residual, p.channels_last), _strides(), False


def _forward_config(p: _Problem, kind: int) -> Config:
    resident = 0 if kind == LAYER_STD else RESIDENT_FORWARD
    return _config(p.x, p.length, p.channels_last, resident, 16)


def _backward_config(p: _Problem, kind: int) -> Config:
    # up to nine gradients per element take their registers: smaller tiles, more threads for each
    resident = RESIDENT_BACKWARD // 4 if p.pad else RESIDENT_BACKWARD
    return _config(p.x, p.length, p.channels_last, 0 if kind == LAYER_STD else resident, 8 if p.pad else 16)


def _chunk_stats(p: _Problem, config: Config) -> Tensor:
    partials = p.partials(3, config.chunks)
    _triton.run(
        triton_forward.chunk_stats,
        p.programs(config, config.chunks),
        config.warps,
        *(p.x, partials),
        **p.sizes(),
        chunks=config.chunks,
        tiles=config.tiles,
        **p.layout(config),
    )
    return partials


def _combine_stats(p: _Problem, config: Config, partials: Tensor, stats: Tensor, kind: int, eps: float) -> None:
    block = min(pow2(p.group * config.chunks), 1024)
    sizes = {"planes": p.planes, "L": p.length, "group": p.group, "chunks": config.chunks, "tiles": config.tiles}
    _triton.run(
        triton_forward.combine_stats,
        p.planes // p.group,
        max(block // 256, 1),
        *(partials, stats),
        **sizes,
        count=p.count,
        eps=eps,
        KIND=kind,
        BLOCK_L=config.block_l,
        BLOCK_K=block,
    )


def forward(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    spec: Spec,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, stats). `out`: write there instead of into new memory (benchmarks)."""
    p = _Problem(x, spec.kind, spec.padding)
    y = new_output(p.x, spec.padding, p.channels_last) if out is None else out
    stats = new_stats(p.x)
    if y.numel() == 0:
        return y, stats
    scale, scale_n = _parameter(scale)
    shift, shift_n = _parameter(shift)
    residual, strides, strided = _residual(p, residual)
    config = _forward_config(p, spec.kind)
    named = p.sizes() | p.output_sizes() | strides
    named |= {"scale_n": scale_n, "shift_n": shift_n}
    named |= {"count": p.count, "eps": spec.eps, "offset": spec.offset, "slope": spec.slope}
    constants = p.layout(config)
    constants |= {"KIND": spec.kind, "ACT": spec.activation, "PAD": spec.padding, "STRIDED": strided}
    with on(p.x):
        if config.resident:
            tile = config.block_c * config.block_l
            _triton.run(
                triton_forward.forward_resident,
                p.programs(config, 1),
                config.warps,
                *(p.x, scale, shift, residual, y, stats),
                **named,
                **constants,
                # a padded plane is a little longer than its tile: shorter steps waste less of the last
                BLOCK_O=config.block_l // 4 if tile >= 2048 and config.block_l >= 64 else config.block_l,
            )
            return y, stats
        partials = _chunk_stats(p, config)
        if spec.kind == LAYER_STD or not config.merge:
            _combine_stats(p, config, partials, stats, spec.kind, spec.eps)
            partials = None
        _triton.run(
            triton_forward.forward_apply,
            p.programs(config, cdiv(p.out_length, config.block_l)),
            config.warps,
            *(p.x, scale, shift, residual, y, stats, partials),
            **named,
            chunks=config.chunks,
            tiles=config.tiles,
            **constants,
            BLOCK_K=1 if partials is None else pow2(config.chunks),
        )
    return y, stats


def backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    stats: Tensor,
    need_residual: bool,
    spec: Spec,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, scale, shift (float32, None where not given) and of the residual (None unless asked for: only
    with padding, since without it that gradient is `grad`)."""
    p = _Problem(x, spec.kind, spec.padding)
    x, grad = p.x, dense(grad, p.channels_last)
    dx = torch.empty_like(x)
    dresidual = torch.empty_like(x) if need_residual else None
    if x.numel() == 0:
        dscale, dshift = (None if t is None else torch.zeros_like(t, dtype=torch.float32) for t in (scale, shift))
        return dx, dscale, dshift, dresidual
    # kernels write what each plane contributes; parameters of all samples add theirs up below
    dscale, dshift = (
        None if t is None else torch.empty((p.n, p.c), dtype=torch.float32, device=x.device) for t in (scale, shift)
    )
    scale_in, scale_n = _parameter(scale)
    shift_in, shift_n = _parameter(shift)
    config = _backward_config(p, spec.kind)
    named = p.sizes() | p.output_sizes()
    named |= {"scale_n": scale_n, "shift_n": shift_n, "offset": spec.offset, "slope": spec.slope}
    constants = p.layout(config) | {"ACT": spec.activation, "PAD": spec.padding}
    with on(x):
        if config.resident:
            _triton.run(
                triton_backward.backward_resident,
                p.programs(config, 1),
                config.warps,
                *(grad, x, scale_in, shift_in, stats, dx, dresidual, dscale, dshift),
                **named,
                count=p.count,
                **constants,
                KIND=spec.kind,
            )
        else:
            partials, sums = p.partials(2, config.chunks), None
            _triton.run(
                triton_backward.chunk_sums,
                p.programs(config, config.chunks),
                config.warps,
                *(grad, x, scale_in, shift_in, stats, dresidual, partials),
                **named,
                chunks=config.chunks,
                tiles=config.tiles,
                **constants,
            )
            block_k = pow2(config.chunks)
            if spec.kind == LAYER_STD or not config.merge:
                groups = p.planes // p.group
                sizes = {"planes": p.planes, "C": p.c, "group": p.group, "scale_n": scale_n, "chunks": config.chunks}
                sums = torch.empty((2, groups), dtype=torch.float32, device=x.device)
                block_p = max(min(pow2(p.group), 2048 // block_k), 1)
                _triton.run(
                    triton_backward.combine_sums,
                    groups,
                    _warps(block_p * block_k, 8),
                    *(partials, scale_in, stats, sums, dscale, dshift),
                    **sizes,
                    offset=spec.offset,
                    BLOCK_P=block_p,
                    BLOCK_K=block_k,
                )
                partials, block_k = None, 1
            _triton.run(
                triton_backward.backward_apply,
                p.programs(config, cdiv(p.length, config.block_l)),
                config.warps,
                *(grad, x, scale_in, shift_in, stats, dx, dscale, dshift, partials, sums),
                **named,
                group=p.group,
                chunks=config.chunks,
                count=p.count,
                **constants,
                KIND=spec.kind,
                BLOCK_K=block_k,
            )
        return dx, _like(dscale, scale), _like(dshift, shift), dresidual


def _like(planes: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """(N, C) sums of planes in the parameter's shape."""
    if planes is None or parameter is None or parameter.dim() == 2:
        return planes
    return planes.sum(0) if planes.shape[0] > 1 else planes.view(-1)


def moments(x: Tensor, kind: int, eps: float) -> Tensor:
    """Statistics (4, N, C) of every plane."""
    p = _Problem(x, kind, 0)
    stats = new_stats(p.x)
    if not p.x.numel():
        return stats
    config = _forward_config(p, kind)
    named = p.sizes() | p.output_sizes() | _strides()
    named |= {"scale_n": 0, "shift_n": 0, "count": p.count, "eps": eps, "offset": 0.0, "slope": 0.0}
    constants = p.layout(config) | {"KIND": kind, "ACT": 0, "PAD": 0, "STRIDED": False, "BLOCK_O": config.block_l}
    with on(p.x):
        if config.resident:
            _triton.run(
                triton_forward.forward_resident,
                p.programs(config, 1),
                config.warps,
                *(p.x, None, None, None, None, stats),
                **named,
                **constants,
            )
        else:
            _combine_stats(p, config, _chunk_stats(p, config), stats, kind, eps)
    return stats


def moments_backward(grad_mean: Tensor, grad_std: Tensor, x: Tensor, stats: Tensor, kind: int) -> Tensor:
    """Gradient of x from those of its planes' mean and sqrt(unbiased variance + eps), each (N, C)."""
    p = _Problem(x, kind, 0)
    dx = torch.empty_like(p.x)
    if not p.x.numel():
        return dx
    config = _backward_config(p, LAYER_STD)  # no sums: tiles as small as fill the device
    with on(p.x):
        _triton.run(
            triton_backward.moments_backward,
            p.programs(config, cdiv(p.length, config.block_l)),
            config.warps,
            *(grad_mean.contiguous(), grad_std.contiguous(), p.x, stats, dx),
            **p.sizes(),
            count=p.count,
            **p.layout(config),
        )
    return dx
