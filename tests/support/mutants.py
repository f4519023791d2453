"""Do the emulated cases of a room notice a barrier or a wait that is not there? Each is removed from a copy of
csrc/cuda, one at a time, and the cases run on what is left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support import emulated

from kernels import _cuda_build

BARRIER = re.compile(r"__syncthreads\(\);|__syncwarp\(\);|cluster_wait\(\);|copy_wait<\d>\(\);")
SEEDS = range(7)  # 0: the fixed order; then each kind of random order twice


class Mutant(NamedTuple):
    file: str
    line: int
    statement: str
    at: int  # its number in the file

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.statement}"


def mutants(room: str) -> list[Mutant]:
    """All barriers and waits of a room's kernels."""
    found = []
    for path in sorted((_cuda_build.SOURCES / room).glob("*.cuh")):
        text = path.read_text()
        for number, match in enumerate(BARRIER.finditer(text)):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Mutant(f"{room}/{path.name}", line, match[0], number))
    return found


def without(mutant: Mutant, folder: Path) -> Path:
    """A copy of the sources in which it is not."""
    copy = folder / "cuda"
    shutil.copytree(_cuda_build.SOURCES, copy)
    path = copy / mutant.file
    matches = list(BARRIER.finditer(path.read_text()))
    start, end = matches[mutant.at].span()
    text = path.read_text()
    path.write_text(text[:start] + text[end:])
    return copy


def outcome(cases: Callable[[], list], seed: int) -> list:
    with emulated.order(seed):
        return cases()


def caught(mutant: Mutant, cases: Callable[[], list], want: list, folder: Path) -> str:
    """How the cases, tensors or numbers that are the same bits in every run, show that it is missing; empty if they do
    not. `want`: what they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda_build, "SOURCES", without(mutant, folder))
        _cuda_build.headers.cache_clear()
        try:
            with emulated.emulation():
                for seed in SEEDS:
                    try:
                        got = outcome(cases, seed)
                    except RuntimeError as error:
                        return f"seed {seed}: {error}"
                    if not all(same(a, b) for a, b in zip(got, want, strict=True)):
                        return f"seed {seed}: other results"
        finally:
            _cuda_build.headers.cache_clear()
    return ""


def same(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
