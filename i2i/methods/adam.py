"""torch's fused Adam, for weights in channels last and gradients in any order of memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """torch.optim.Adam(..., fused=True), with the same states.

    On a CPU torch's fused operator goes through weight, gradient and moments as they lie in memory and pairs what does
    not belong together where their orders differ, without a word. And of every gradient in channels last it makes a
    contiguous copy, three quarters of its time, that it does not read. So it is given the tensors as plain lines.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, fused=True, **options)

    def _init_group(self, group: Any, params: Any, grads: Any, means: Any, squares: Any, *others: Any) -> bool:
        """torch's own, which fills the lists that the operator is called with."""
        has_complex = super()._init_group(group, params, grads, means, squares, *others)
        for i, weight in enumerate(params):
            if weight.device.type == "cpu":
                params[i], means[i], squares[i] = (_line(t, weight) for t in (weight, means[i], squares[i]))
                grads[i] = _line(_in_order_of(weight, grads[i]), weight)
        return has_complex


def _in_order_of(weight: Tensor, t: Tensor) -> Tensor:
    """t, or a copy that lies in memory as the weight does."""
    return t if t.stride() == weight.stride() else torch.empty_like(weight, requires_grad=False).copy_(t)


def _line(t: Tensor, weight: Tensor) -> Tensor:
    """All elements of t, which lies in memory as the weight does, without gaps, in the order of memory."""
    return t.as_strided((weight.numel(),), (1,))
