"""What the launchers of the triton kernels launch, recorded at `kernels._triton.run`, the one place that does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from kernels import _triton


class Launch(NamedTuple):
    kernel: object
    programs: int
    warps: int
    args: tuple
    constants: dict  # what was given by name: constants of the compilation, and of the norms sizes and scalars too
    stages: int = 1

    @property
    def name(self) -> str:
        return self.kernel.__name__


@contextlib.contextmanager
def recorded(run: bool = False) -> Iterator[list[Launch]]:
    """The launches inside the block, in order; each is also run, if asked for."""
    found, launch = [], _triton.run

    def record(kernel, programs, warps, *args, stages=1, **constants):
        found.append(Launch(kernel, programs, warps, args, constants, stages))
        if run:
            launch(kernel, programs, warps, *args, stages=stages, **constants)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_triton, "run", record)
        yield found
