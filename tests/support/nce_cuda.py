"""Results of every CUDA kernel of the nce room: one slab of keys and several, wide rows and rows of single elements."""

from __future__ import annotations

import torch
from support.nce_device_numerics import BF16, FLOAT, HALF, inputs

from kernels.nce import launch_cuda
from kernels.nce.spec import Layer, Needs, Spec

# Rows and width of a layer, its negatives, its weights. The widest decides how many columns a block has: 64, then 256.
CALLS = [
    [((2, 33, 37), None, ""), ((1, 20, 24), (300,), "both"), ((2, 5, 64), (2, 140), "log")],
    [((1, 17, 300), None, "similarity")],
]


def everything() -> list[torch.Tensor]:
    found = []
    for dtype in (FLOAT, BF16, HALF):
        for normalize in (False, True):
            spec = Spec(0.3 if normalize else 3.0, normalize, False)
            for call in CALLS:
                layers = [layer_of(inputs(*layer, dtype=dtype, seed=10 * i)) for i, layer in enumerate(call)]
                loss, stats, units = launch_cuda.forward(layers, spec, [True] * len(layers))
                grad = torch.linspace(-1.0, 2.0, len(loss))
                needs = [
                    Needs(True, True, layer.negatives is not None, layer.log_weight is not None) for layer in layers
                ]
                grads = launch_cuda.backward(grad, layers, stats, units, needs, spec)
                found += [loss, stats, *units, *(g for four in grads for g in four)]
    return [t for t in found if t is not None]


def layer_of(given: dict) -> Layer:
    """Weights as the public function would pass them."""
    on_host = (None if t is None else t.cpu() for t in given.values())  # for the emulation, also where there is a GPU
    q, k, negatives, log_weight, similarity_weight = on_host
    shape = (*q.shape[:2], (k if negatives is None else negatives).shape[-2])
    return Layer(q, k, negatives, *(None if w is None else w.expand(shape) for w in (log_weight, similarity_weight)))
