"""Which dtype to compute in, whatever the caller's autocast would like. Shared by the operators."""

from __future__ import annotations

import contextlib

import torch


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def in_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def no_autocast(device: str) -> contextlib.AbstractContextManager:
    """A region in which products keep the dtype of their factors; nothing where nothing is to be done, for an exported
    graph would show it."""
    return torch.autocast(device, enabled=False) if in_autocast(device) else contextlib.nullcontext()


def records_torch() -> bool:
    """Whether a graph of torch's own operators is being recorded, in which an autograd.Function is out of place."""
    is_tracing = torch.jit.is_tracing  # pyright: ignore[reportPrivateImportUsage] (documented)
    return is_tracing() or torch.compiler.is_exporting()


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a, b):
        with no_autocast(a.device.type):
            return a @ b

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad
        da = product(grad, b.transpose(-1, -2)) if need_a else None
        return da, product(a.transpose(-1, -2), grad) if need_b else None


class _ProductForward(_Product):
    """With forward-mode derivatives, at which torch.compile stops."""

    @staticmethod
    def jvp(ctx, da, db):
        a, b = ctx.saved_tensors
        return product(da, b) + product(a, db)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b, (..., S, C) and (..., C, M) of one dtype and the same dimensions in front, in that dtype also inside
    autocast. So are all its derivatives, where autocast is on when they are taken: torch's own product would then take
    them in 16 bits, even if it was itself taken outside."""
    if records_torch() or not torch.is_grad_enabled():
        with no_autocast(a.device.type):
            return a @ b
    return (_Product if torch.compiler.is_compiling() else _ProductForward).apply(a, b)
