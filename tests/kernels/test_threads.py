"""Every public operator on the CPU, forward and backward: the same bits for any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

import kernels

Tensor = torch.Tensor
NOT_OPERATORS = {"accelerate", "backend_report", "fuse", "keep_freed_memory", "preferred_memory_format", "unfuse"}


class Case(NamedTuple):
    """Large enough for several threads, odd enough that they get unequal parts."""

    call: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


MAP, IDS = (2, 37, 66, 70), torch.arange(500) % 341
ROWS = (3, 100, 40)


def sampled(x: Tensor) -> Tensor:
    (rows,), _ = kernels.sample_patches([x], ids=[IDS], impl="cpu")
    return rows


def tapped(x: Tensor) -> Tensor:
    """The gradient of the rows is added into that of the map."""
    x, rows = kernels.tap_patches(x * 1.5, IDS, impl="cpu")
    return torch.cat([x.flatten(), rows.flatten()])


def nce(**options: object) -> Callable[..., Tensor]:
    def call(q: Tensor, k: Tensor, negatives: Tensor | None = None) -> Tensor:
        options_ = options | {"detach_keys": False, "reduction": "none", "impl": "cpu"}
        return kernels.patch_nce_loss(q, k, negatives=negatives, **options_)

    return call


def layers(*rows: Tensor) -> Tensor:
    return kernels.patch_nce_loss(rows[::2], rows[1::2], normalize=True, detach_keys=False, impl="cpu")


CASES = {
    "instance_norm": Case(lambda x: kernels.instance_norm(x, activation="relu", padding=2, impl="cpu"), (MAP,)),
    "instance_norm, 3-D": Case(lambda x: kernels.instance_norm(x, impl="cpu"), ((2, 37, 18, 15, 16),)),
    "adaptive_instance_norm": Case(
        lambda x, scale, shift: kernels.adaptive_instance_norm(x, scale, shift, impl="cpu"), (MAP, (2, 37), (2, 37))
    ),
    "adain": Case(lambda x, style: kernels.adain(x, style, impl="cpu"), (MAP, (2, 37, 50, 61))),
    "munit_layer_norm": Case(
        lambda x, gamma, beta: kernels.munit_layer_norm(x, gamma, beta, impl="cpu"), (MAP, (37,), (37,))
    ),
    "blur_downsample": Case(lambda x: kernels.blur_downsample(x, impl="cpu"), (MAP,)),
    "blur_upsample": Case(lambda x: kernels.blur_upsample(x, impl="cpu"), (MAP,)),
    "reflection_pad2d": Case(lambda x: kernels.reflection_pad2d(x, (3, 1, 0, 2), impl="cpu"), (MAP,)),
    "sample_patches": Case(sampled, ((2, 137, 31, 33),)),
    "tap_patches": Case(tapped, ((2, 137, 31, 33),)),
    "patch_nce_loss": Case(nce(), (ROWS, ROWS)),
    "patch_nce_loss, layers": Case(layers, (ROWS, ROWS, (3, 70, 64), (3, 70, 64))),
    "patch_nce_loss, bank": Case(nce(normalize=True), (ROWS, ROWS, (300, 40))),
    "patch_nce_loss, decoupled, negatives of each image": Case(nce(decoupled=True), (ROWS, ROWS, (3, 300, 40))),
    "sinkhorn": Case(lambda x: kernels.sinkhorn(x, 20, impl="cpu"), ((5, 40, 43),)),
    "monce_log_weight": Case(lambda q, k: kernels.monce_log_weight(q, k, impl="cpu"), (ROWS, ROWS)),
    "hdce_weight": Case(lambda q, k: q * kernels.hdce_weight(k, 10.0).sum(-1, keepdim=True), (ROWS, ROWS)),
    "semantic_relation_loss": Case(kernels.semantic_relation_loss, (ROWS, ROWS)),
}


def test_every_public_operator_has_a_case():
    operators = {name for name in kernels.__all__ if name.islower()} - NOT_OPERATORS
    assert {name.split(",")[0] for name in CASES} == operators


FORMS = {4: torch.channels_last, 5: torch.channels_last_3d}
LAYOUTS = [
    (name, channels_last)
    for name, case in CASES.items()
    for channels_last in ([False, True] if len(case.shapes[0]) > 3 else [False])
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name, channels_last", LAYOUTS)
def test_same_bits_for_any_number_of_threads(name, channels_last, dtype):
    call, shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if channels_last:
        tensors = [t.contiguous(memory_format=FORMS.get(t.dim(), torch.contiguous_format)) for t in tensors]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
            y = call(*leaves)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
            found.append([y.detach(), *torch.autograd.grad(y, leaves, grad, allow_unused=True)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
