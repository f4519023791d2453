"""The CUDA kernels of every room in the emulation: the same bits in every order of threads, every barrier needed, and
no access beyond memory."""

from __future__ import annotations

import importlib
import shutil

import pytest
from support import emulated, mutants, sanitized

from kernels import _cuda_build

ROOMS = emulated.ROOMS


def of(room):
    """everything() of tests/support/ROOM_cuda.py: results of all kernels of the room."""
    return importlib.import_module(f"support.{room}_cuda").everything


@pytest.fixture(scope="module")
def wanted():
    """wanted(room): the results in the fixed order."""
    known = {}

    def want(room):
        if room not in known:
            with emulated.emulation():
                known[room] = mutants.outcome(of(room), 0)
        return known[room]

    return want


@pytest.mark.parametrize("room", ROOMS)
def test_every_order_gives_the_same_bits(room, wanted):
    want = wanted(room)
    with emulated.emulation():
        for seed in (1, 2, 3):  # one of each kind: by thread, by warp, by block
            got = mutants.outcome(of(room), seed)
            assert len(want) >= 4 and all(mutants.same(a, b) for a, b in zip(got, want, strict=True)), seed


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [mutant for room in ROOMS for mutant in mutants.mutants(room)], ids=str)
def test_every_barrier_is_needed(mutant, wanted, tmp_path):
    room = mutant.file.partition("/")[0]
    how = mutants.caught(mutant, of(room), wanted(room), tmp_path)
    assert how, f"nothing shows that {mutant} is missing"
    print(f"{mutant}: {how}")


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_no_access_is_beyond_memory(room):
    done = sanitized.run(f"{room}_cuda")
    assert done.returncode == 0 and "results" in done.stdout, done.stdout + done.stderr[-2000:]


FAULTS = {
    "one vector more is read": (
        "norm/tile.cuh",
        "end = min(begin + items, total);",
        "end = min(begin + items, total + 1);",
    ),
    "the padded plane is one longer": ("norm/output.cuh", "int(a.out_length / M)", "int(a.out_length / M) + 1"),
    "one plane of statistics more": ("norm/forward.cuh", "if (t < tile.group) {", "if (t < tile.group + 1) {"),
    "one piece more is merged": ("norm/backward.cuh", "j < a.chunks; j += 32", "j < a.chunks + 1; j += 32"),
    "one row more is read": ("nce/tile.cuh", "r < there && c * N < columns", "r < there + 1 && c * N < columns"),
    "one column more is read": ("nce/tile.cuh", "r < there && c < columns ?", "r < there && c < columns + 1 ?"),
    "one row more is written": ("nce/backward_rows.cuh", "ROWS_OF_BLOCK, a.rows[l])", "ROWS_OF_BLOCK, a.rows[l] + 1)"),
    "one key more has a gradient": (
        "nce/backward.cuh",
        "i < queries && j < keys) dlog",
        "i < queries && j < keys + 1) dlog",
    ),
    "sums are longer than slabs": ("nce/tile.cuh", "LINE = COLUMNS + 4", "LINE = 8 * COLUMNS * 16"),
    "one patch more is read": ("patches/tile.cuh", "p() < a.count[map] &&", "p() < a.count[map] + 1 &&"),
    "one pixel more is made": ("resample/resample.cuh", "exists = item < items", "exists = item < items + 1"),
    "rows beyond the last": ("sinkhorn/problem.cuh", "end = min(begin + a.span, a.rows)", "end = begin + a.span"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_accesses_beyond_memory_are_seen(fault, tmp_path):
    file, old, new = FAULTS[fault]
    sources = tmp_path / "cuda"
    shutil.copytree(_cuda_build.SOURCES, sources)
    text = (sources / file).read_text()
    assert old in text
    (sources / file).write_text(text.replace(old, new))
    done = sanitized.run(f"{file.partition('/')[0]}_cuda", sources)
    assert "AddressSanitizer" in done.stderr or "shared memory" in done.stderr, done.stdout + done.stderr[-2000:]
