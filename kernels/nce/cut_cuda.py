"""How one launch of the contrastive losses is cut into blocks for the CUDA kernels (csrc/cuda/nce): plain numbers.

A block owns `rows` queries (forward) or keys (backward) of one problem and `columns` of their gradient, and goes over
all that meet them. Wider rows than `columns` are cut into chunks, whose blocks compute the same logits again. All
choices are by rule, from shapes and the device; none has been timed on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple

from kernels._cuda import Device

THREADS = 256  # of a block
COLUMNS = (64, 128, 256)
ROWS = (16, 32)
STATIC_SHARED = 7 * 1024  # bytes that the kernels themselves take, and 1 KiB that the system does
ROWS_OF_BLOCK = 16  # rows of a block of backward_rows.cuh


class Size(NamedTuple):
    """One layer of a launch."""

    problems: int
    own: int  # rows of a problem that blocks own, 0: none
    others: int  # that each of them meets
    width: int
    whole: bool  # a gradient of all columns is wanted; else one chunk serves, of losses alone


class Cut(NamedTuple):
    columns: int
    rows: int
    stages: int
    shared: int  # bytes of dynamic shared memory
    tiles: tuple[int, ...]  # of a problem, by layer
    chunks: tuple[int, ...]
    starts: tuple[int, ...]  # the layers' first blocks
    blocks: int

    @property
    def most_threads(self) -> int:
        """By which the compiler counts registers, of 65536 in all: the smaller blocks have 128 for a thread, so that
        two fit a multiprocessor, the larger 168. Told of THREADS alone, ptxas spills some to come down to 128."""
        return 384 if self.rows > ROWS[0] else 2 * THREADS


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def starts_of(counts: list[int]) -> tuple[int, ...]:
    return tuple(sum(counts[:i]) for i in range(len(counts)))


def _others(itemsize: int) -> int:
    """Rows that a block meets at a time: OTHERS of csrc/cuda/nce/tile.cuh."""
    return 64 if itemsize == 4 else 128


def _shared(columns: int, rows: int, stages: int, itemsize: int) -> int:
    """Slabs and weights, as tile.cuh lays them out."""
    return itemsize * (stages * (rows + _others(itemsize)) * columns + rows * _others(itemsize))


def cut(sizes: list[Size], itemsize: int, device: Device) -> Cut:
    """sizes: layers of which some may have nothing to own."""
    widest = max(size.width for size in sizes if size.own)
    columns = next((c for c in COLUMNS if c >= widest), COLUMNS[-1])
    chunks = tuple(cdiv(size.width, columns) if size.whole else 1 for size in sizes)
    room = device.shared - STATIC_SHARED

    def blocks(rows: int) -> list[int]:
        return [size.problems * cdiv(size.own, rows) * many for size, many in zip(sizes, chunks)]

    # The most rows, which are fetched from memory the fewest times, that leave every multiprocessor two blocks.
    fitting = [rows for rows in ROWS if _shared(columns, rows, 1, itemsize) <= room]
    rows = next((r for r in reversed(fitting) if sum(blocks(r)) >= 2 * device.sms), fitting[0])
    counts = blocks(rows)
    # A second slab, fetched while the first is used, where a multiprocessor has no second block to run meanwhile, or
    # room for the slabs of both.
    slabs = max(cdiv(size.others, _others(itemsize)) * cdiv(size.width, columns) for size in sizes if size.own)
    two = _shared(columns, rows, 2, itemsize)
    stages = 2 if slabs > 1 and two <= (room if sum(counts) <= device.sms else room // 2) else 1
    tiles = tuple(cdiv(size.own, rows) for size in sizes)
    shared = _shared(columns, rows, stages, itemsize)
    return Cut(columns, rows, stages, shared, tiles, chunks, starts_of(counts), sum(counts))
