"""The rule every implementation is held to, and the inputs it is held to it on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from kernels import _native, backends

# The instruction sets this machine runs; empty where the C++ operators did not build, which the `isa` fixture reports.
# KERNELS_TEST_ISA=best leaves the best one, as `make check` does.
LEVELS = [] if backends.why_no_cpu() else _native.load().supported()
if os.environ.get("KERNELS_TEST_ISA") == "best":
    LEVELS = LEVELS[-1:]
# Beside these: what is around the matrix unit, with plain C++ in its place. Only the losses differ from avx2.
EMULATED = _native.load().emulated() if LEVELS else []

Tensors = dict[str, torch.Tensor | None]

# Beside twice torch's own error: results are rounded to the dtype once by everybody (half an eps of the largest
# value), and sums of a handful of terms differ by a few roundings without anyone being wrong.
FLOOR = 4.0


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = _native.selected_isa()
    _native.select_isa(name)
    try:
        yield
    finally:
        _native.select_isa(before)


def make(shape: tuple[int, ...], *names: str, seed: int = 0, mean: float = 0.5, std: float = 2.0) -> Tensors:
    """float64 inputs by name: x and residual of `shape`, weight and bias (C,), scale and shift (N, C)."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    n, c = shape[:2]
    sizes = {"weight": (c,), "bias": (c,), "scale": (n, c), "shift": (n, c), "residual": shape}
    return {"x": randn(*shape) * std + mean} | {name: randn(*sizes[name]) for name in names}


def in_layout(t: torch.Tensor, channels_last: bool) -> torch.Tensor:
    if not channels_last:
        return t.contiguous()
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def run(op, inputs: Tensors, dtype: torch.dtype, channels_last: bool, seed: int = 1) -> dict[str, torch.Tensor]:
    """Output and every gradient of op(**inputs) computed in `dtype`, for a random upstream gradient of y's layout."""
    given = {}
    for name, t in inputs.items():
        t = t.to(dtype)
        given[name] = (in_layout(t, channels_last) if t.dim() > 2 else t).detach().requires_grad_()
    y = op(**given)
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    g = in_layout(g.to(inputs["x"].dtype if dtype == torch.float64 else dtype), channels_last)
    grads = torch.autograd.grad(y, list(given.values()), g)
    return {"y": y.detach()} | {f"d{name}": grad for name, grad in zip(given, grads)}


def rounded(inputs: Tensors, dtype: torch.dtype) -> Tensors:
    """The values the narrow dtype really holds, as float64: what the oracle must be given."""
    return {name: t.to(dtype).double() for name, t in inputs.items()}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return (got.double() - want.double()).abs().max().item() if got.numel() else 0.0


def check_rule(ours: dict, torchs: dict, exact: dict, dtype: torch.dtype, what: object = "") -> None:
    """Our error against float64 is at most twice torch's own error in the same dtype, plus a few roundings."""
    eps = torch.finfo(dtype).eps
    for name, want in exact.items():
        assert ours[name].dtype == torchs[name].dtype, (what, name, ours[name].dtype)
        size = want.abs().max().item() if want.numel() else 0.0
        if 0 < want.dim() <= 2:
            # a parameter's gradient sums terms of size one: chance can make the sum small, but not its rounding
            size = max(size, (exact["y"].numel() / want.numel()) ** 0.5)
        limit = 2 * error(torchs[name], want) + FLOOR * eps * size
        assert error(ours[name], want) <= limit, (what, name, error(ours[name], want), limit)
