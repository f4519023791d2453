"""Tensors to addresses and sizes for the C++ losses (csrc/cpu/nce). No autograd, no checks of arguments.

Where q wants a gradient the forward pass computes that of a row gradient of 1 along with the loss, while the tile of
logits is in cache: two products instead of the three of recomputing. The backward pass then scales its rows. Gradients
of k, negatives and log_weight are recomputed block by block.
"""

from __future__ import annotations

import torch

from kernels._native import DTYPE_CODES, load, pointer
from kernels.nce.spec import Layer, Needs, Spec, new_gradients, new_rows

Tensor = torch.Tensor

# The arguments of each C++ function, in order, by the names of csrc/cpu/nce/bind.cpp; compared when the library loads.
# Those in brackets are passed for every layer.
_CALL = "dtype temperature normalize decoupled"  # as _call returns them
_WEIGHTS = " ".join(f"{weight}.{name}" for weight in ("log_weight", "similarity_weight") for name in "pbij")
_LAYER = f"q k negatives b s m c shared {_WEIGHTS}"  # as _layer returns them
ARGUMENTS = {
    "nce_forward": f"{_CALL} loss stats [ {_LAYER} dq_unscaled ]",
    "nce_backward": f"{_CALL} grad stats [ {_LAYER} dq_unscaled_in grad_q grad_k grad_negatives grad_log_weight ]",
}


def _dense(layer: Layer) -> Layer:
    """q, k, negatives contiguous, weights float32 (expanded ones stay so)."""
    q, k, negatives, *weights = layer
    weights = (None if w is None else w.detach().to(torch.float32) for w in weights)
    return Layer(q.contiguous(), k.contiguous(), None if negatives is None else negatives.contiguous(), *weights)


def _layer(layer: Layer) -> list[int]:
    batch, rows, width = layer.q.shape
    shared = layer.negatives is not None and layer.negatives.dim() == 2
    numbers = [
        layer.q.data_ptr(),
        layer.k.data_ptr(),
        pointer(layer.negatives),
        batch,
        rows,
        layer.num_negatives,
        width,
        shared,
    ]
    for w in (layer.log_weight, layer.similarity_weight):
        numbers += [0, 0, 0, 0] if w is None else [w.data_ptr(), *w.stride()]
    return numbers


def _call(layers: list[Layer], spec: Spec) -> list:
    return [DTYPE_CODES[layers[0].q.dtype], spec.temperature, spec.normalize, spec.decoupled]


def forward(layers: list[Layer], spec: Spec, need_q: list[bool]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Losses (R,), statistics (3, R), and per layer the gradient of q for a row gradient of 1, float32 (B, S, C), or an
    empty tensor where it is not needed."""
    layers = [_dense(layer) for layer in layers]
    loss, stats = new_rows(layers)
    dq_unscaled = [
        torch.empty(layer.q.shape if need else 0, dtype=torch.float32, device=loss.device)
        for layer, need in zip(layers, need_q)
    ]
    if loss.numel():
        arguments = _call(layers, spec) + [loss.data_ptr(), stats.data_ptr()]
        for layer, unscaled, need in zip(layers, dq_unscaled, need_q):
            arguments += [*_layer(layer), unscaled.data_ptr() if need else 0]
        load().nce_forward(*arguments)
    return loss, stats, dq_unscaled


def backward(
    grad: Tensor, layers: list[Layer], stats: Tensor, dq_unscaled: list[Tensor], needs: list[Needs], spec: Spec
) -> list[tuple]:
    """Per layer the gradients of q, k, negatives (their dtypes) and log_weight (float32, (B, S, M)), None where not
    needed, from that of the losses, (R,)."""
    layers = [_dense(layer) for layer in layers]
    grad = grad.to(torch.float32).contiguous()
    found = [new_gradients(layer, need) for layer, need in zip(layers, needs)]
    if grad.numel():
        arguments = _call(layers, spec) + [grad.data_ptr(), stats.data_ptr()]
        for layer, unscaled, grads in zip(layers, dq_unscaled, found):
            arguments += [*_layer(layer), unscaled.data_ptr(), *map(pointer, grads)]
        load().nce_backward(*arguments)
    return found
