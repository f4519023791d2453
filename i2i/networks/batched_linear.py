"""Linear layers side by side: their products of matrices in one, forward and backward.

Autograd Functions, because torch's own derivatives would copy: that of `bmm` gives the gradient of a weight transposed,
a bias is copied for each product, and gradients of what was cut from one tensor are put together again. Derivatives of
higher orders are torch's, of what `backward` does here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Batched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, counts: Sequence[int], dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = tensors[0].dtype, dtype
        flat = torch.cat([t.reshape(-1) for t in tensors]).to(dtype)
        return _cut(flat, counts, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given, computed = ctx.dtypes
        if given != computed:  # one cast
            flat = torch.cat([grad.reshape(-1) for grad in grads]).to(given)
            grads = tuple(part.view(g.shape) for part, g in zip(flat.split([g.numel() for g in grads]), grads))
        return None, None, *(part for grad in grads for part in grad.unbind())


def _cut(flat: Tensor, counts: Sequence[int], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Batches (count, *shape) of tensors that lie in a row in `flat`."""
    firsts = [tensors[at] for at in itertools.accumulate(counts[:-1], initial=0)]
    parts = flat.split([count * t.numel() for count, t in zip(counts, firsts)])
    return tuple(part.view(count, *t.shape) for part, count, t in zip(parts, counts, firsts))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias: Tensor, *groups: Tensor) -> Tensor:
        ctx.save_for_backward(*groups)
        y = bias[:, None].expand(-1, groups[0].shape[1], -1).clone(memory_format=torch.contiguous_format)
        for part, x, weight in _parts(y, groups):
            part.baddbmm_(x, weight.transpose(1, 2))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_bias, *need = ctx.needs_input_grad
        found = [grad.sum(1) if need_bias else None]
        for i, (part, x, weight) in enumerate(_parts(grad, ctx.saved_tensors)):
            found.append(torch.bmm(part, weight) if need[2 * i] else None)
            found.append(torch.bmm(part.transpose(1, 2), x) if need[2 * i + 1] else None)
        return tuple(found)


def _parts(y: Tensor, groups: Sequence[Tensor]) -> zip:
    """(what of y belongs to it, x, weight) of each group."""
    xs, weights = groups[::2], groups[1::2]
    return zip(y.split([len(x) for x in xs]) if len(xs) > 1 else (y,), xs, weights)


def batched(counts: Sequence[int], dtype: torch.dtype, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first counts[0] tensors as one (counts[0], ...) in `dtype`, then the next counts[1], and so on; those of a
    batch have one shape, all one dtype. One copy and at most one cast, and where there is one, the same backward."""
    return _Batched.apply(counts, dtype, *tensors)


def linear(bias: Tensor, *groups: Tensor) -> Tensor:
    """(L, R, O): x weight^T + bias of L layers.

    Args:
        bias: (L, O).
        groups: x (l, R, C) and weight (l, O, C) of the first l layers, x and weight of the next, ...; all of one dtype
            and R, each pair of a C of its own.
    """
    return _Linear.apply(bias, *groups)
