"""How one call of the norm family is cut into blocks for the CUDA kernels (csrc/cuda/norm): plain numbers, no tensors.

A group (contiguous: a plane; channels last: a few vectors of channels) is held by a cluster of up to 8 blocks where it
fits: each tensor is then read once and written once, in one launch. First choice are registers, then shared memory.
Larger groups, layer norm, and groups that would leave most of the device idle go in two sweeps over pieces.

All choices are by rule, from shapes and the device; none has been timed on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

from kernels._cuda import Device
from kernels.norm.spec import LAYER_STD

THREADS = 512  # of a block at most: 128 registers each
PLANES = 64  # of a group at most, PLANES of csrc/cuda/norm/tile.cuh
STATIC_SHARED = 14 * 1024  # bytes that the kernels themselves take, and 1 KiB that the system does
LARGEST_PIECE = 16384  # vectors of a block, where blocks are too few to keep the device busy: two sweeps have more
SMALLEST_PIECE = 256  # vectors: smaller ones are not cut further, a barrier of the cluster costs more
MERGE_IN_APPLY = 512  # partial results (12 bytes each) that a block of the second sweep may merge itself


class Shape(NamedTuple):
    n: int
    c: int
    length: int  # positions of a plane
    itemsize: int
    channels_last: bool
    alignment: int  # all addresses and strides of a call or'ed together
    kind: int

    @property
    def vector(self) -> int:
        """Elements of the widest access: it divides what lies side by side, and every address is a multiple of it."""
        return vector(self.c if self.channels_last else self.length, self.itemsize, self.alignment)


class Cut(NamedTuple):
    vector: int
    log_columns: int  # channels last: vectors of a group, as a power of two
    groups: int
    pieces: int  # blocks of a group: of its cluster where it is held, else of each sweep
    span: int  # positions of a piece
    threads: int
    held: bool
    per: int  # vectors of a thread in registers; 0: held in shared memory
    shared: int = 0  # bytes of it

    @property
    def merge(self) -> bool:
        """Whether the second sweep merges partial results itself."""
        return (self.vector << self.log_columns) * self.pieces <= MERGE_IN_APPLY


def vector(side_by_side: int, itemsize: int, alignment: int) -> int:
    n = 16 // itemsize
    while n > 1 and (side_by_side % n or alignment % (n * itemsize)):
        n //= 2
    return n


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _pow2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _widths(shape: Shape, n: int) -> list[int]:
    """log2 of the columns to try, widest first: 128, 64 or 32 bytes of a position (memory moves 32 at a time)."""
    if not shape.channels_last:
        return [0]
    most = min(_pow2(_cdiv(shape.c, n)), PLANES // n, 32)
    return sorted({min(b // (n * shape.itemsize), most).bit_length() - 1 for b in (128, 64, 32)}, reverse=True)


def _groups(shape: Shape, n: int, log_columns: int) -> int:
    return shape.n * (_cdiv(shape.c, n << log_columns) if shape.channels_last else shape.c)


def _vectors(cut: Cut, shape: Shape) -> int:
    """Of a piece."""
    return cut.span << cut.log_columns if shape.channels_last else cut.span // cut.vector


def _threads(vectors: int, least: int) -> int:
    """Four vectors to a thread, more where that is more than a block has."""
    return min(max(_pow2(_cdiv(vectors, 4)), 32, least), THREADS)


def _held(shape: Shape, n: int, log_columns: int, device: Device, per: tuple[int, ...], copies: int) -> Cut | None:
    """The smallest cluster that holds a group and keeps the device busy; None if none holds it."""
    items = shape.length if shape.channels_last else shape.length // n
    groups, best = _groups(shape, n, log_columns), None
    for in_registers in (True, False):
        cluster = 1
        while cluster <= device.cluster:
            share = _cdiv(items, cluster)  # items of a block
            vectors = share << log_columns
            size = vectors * n * shape.itemsize * copies
            span = share if shape.channels_last else share * n
            if in_registers:
                each, size = next((p for p in per if vectors <= p * THREADS), 0), 0
                fits = each > 0
            else:
                each, fits = 0, size <= device.shared - STATIC_SHARED
            if fits:
                threads = _threads(vectors, 1 << log_columns)
                best = Cut(n, log_columns, groups, cluster, span, threads, True, each, size)
                if groups * cluster >= device.sms or vectors <= SMALLEST_PIECE:
                    return best
            cluster *= 2
        if best:
            return best
    return None


def _swept(shape: Shape, n: int, log_columns: int, device: Device, per: tuple[int, ...]) -> Cut:
    """Pieces that a block takes at once, the largest that give every multiprocessor four."""
    items = shape.length if shape.channels_last else shape.length // n
    groups = _groups(shape, n, log_columns)
    for threads, each in [*((THREADS, p) for p in reversed(per)), (THREADS // 2, min(per))]:
        share = max(threads * each >> log_columns, 1)
        pieces = _cdiv(items, share)
        if groups * pieces >= 4 * device.sms:
            break
    return Cut(n, log_columns, groups, pieces, share if shape.channels_last else share * n, threads, False, each)


def cut(shape: Shape, device: Device, *, backward: bool, padded: bool, held: bool = True) -> Cut:
    """The rule. Backward keeps x and, unless it is padded, the gradient; padded and contiguous it keeps nothing, see
    KEEPS in csrc/cuda/norm/backward.cuh. held=False: two sweeps whatever the size."""
    n = shape.vector
    per, copies = ((4,), 1 if padded else 2) if backward else ((4, 8), 1)
    if backward and padded and not shape.channels_last:
        per, copies = (), 0
    widths = _widths(shape, n)
    if held and shape.kind != LAYER_STD:
        found = [cut for w in widths if (cut := _held(shape, n, w, device, per, copies))]
        busy = [cut for cut in found if cut.groups * cut.pieces >= device.sms]
        small = [cut for cut in found if _vectors(cut, shape) <= LARGEST_PIECE]
        if busy or small:
            return (busy or small[-1:])[0]
    swept = [_swept(shape, n, w, device, per or (4,)) for w in widths]
    return next((cut for cut in swept if cut.merge), swept[0])
