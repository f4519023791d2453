"""Every public operator with every tensor it takes, and tensors without memory of their own: for test_guard.py and
test_tracing.py. As a program, for what may end in a segmentation fault: `python guard_cases.py fake` (or wrapped)
prints what is wrong."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

import kernels

Tensor = torch.Tensor


class Case(NamedTuple):
    """One operator: run(impl, *tensors) -> a tensor; `shapes` of its floating tensors, of which the first
    `differentiable` get gradients."""

    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    differentiable: int

    def tensors(self, seed: int = 0, dtype: torch.dtype = torch.float32, larger: int = 0) -> list[Tensor]:
        """`larger`: by how much every side longer than four is."""
        generator = torch.Generator().manual_seed(seed)
        sizes = [[size + larger if size > 4 else size for size in shape] for shape in self.shapes]
        return [torch.randn(size, generator=generator).to(dtype) for size in sizes]

    def leaves(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.detach().requires_grad_(i < self.differentiable) for i, t in enumerate(tensors)]

    def gradients(self, y: Tensor, leaves: Sequence[Tensor], grad: Tensor | None = None, **options) -> Sequence[Tensor]:
        if not self.differentiable:
            return ()
        return torch.autograd.grad(y, leaves[: self.differentiable], grad, retain_graph=True, **options)


def _sampled(impl: str, x: Tensor, y: Tensor) -> Tensor:
    patches, _ = kernels.sample_patches([x, y], ids=[IDS, IDS], impl=impl)
    return torch.cat([p.flatten() for p in patches])


def _tapped(impl: str, x: Tensor) -> Tensor:
    passed, patches = kernels.tap_patches(x, IDS, impl=impl)
    return torch.cat((passed.flatten(), patches.flatten()))


def _nce(impl, q, k, negatives, log_weight, similarity_weight, row_weight) -> Tensor:
    weights = dict(log_weight=log_weight, similarity_weight=similarity_weight, row_weight=row_weight)
    return kernels.patch_nce_loss(
        q, k, negatives=negatives, **weights, normalize=True, detach_keys=False, reduction="none", impl=impl
    )


X, C, NC, ROWS, IDS = (2, 3, 6, 7), (3,), (2, 3), (2, 5, 4), (3, 0, 17, 3)

CASES = {
    "instance_norm": Case(
        lambda impl, x, w, b, r: kernels.instance_norm(
            x, w, b, residual=r, activation="leaky_relu", padding=1, impl=impl
        ),
        (X, C, C, X),
        4,
    ),
    "adaptive_instance_norm": Case(
        lambda impl, x, s, t: kernels.adaptive_instance_norm(x, s, t, unit_offset=True, activation="tanh", impl=impl),
        (X, NC, NC),
        3,
    ),
    "adain": Case(lambda impl, c, s: kernels.adain(c, s, alpha=0.75, impl=impl), (X, (2, 3, 8, 5)), 2),
    "munit_layer_norm": Case(lambda impl, x, g, b: kernels.munit_layer_norm(x, g, b, impl=impl), (X, C, C), 3),
    "patch_nce_loss": Case(_nce, (ROWS, ROWS, (7, 4), (5, 7), (5, 7), (5,)), 4),
    "patch_nce_loss, layers": Case(
        lambda impl, q, k, q2, k2: kernels.patch_nce_loss([q, q2], [k, k2], temperature=0.5, impl=impl),
        (ROWS, ROWS, (1, 10, 3), (1, 10, 3)),
        1,
    ),
    "monce_log_weight": Case(
        lambda impl, q, k: kernels.monce_log_weight(q, k, iterations=3, normalize=True, impl=impl), (ROWS, ROWS), 1
    ),
    "hdce_weight": Case(lambda impl, k: kernels.hdce_weight(k, 5.0, normalize=True), (ROWS,), 0),
    "semantic_relation_loss": Case(lambda impl, q, k: kernels.semantic_relation_loss(q, k), (ROWS, ROWS), 1),
    "sinkhorn": Case(lambda impl, x: kernels.sinkhorn(x, 3, impl=impl), ((2, 4, 5),), 1),
    "sample_patches": Case(_sampled, (X, (2, 3, 30)), 2),
    "tap_patches": Case(_tapped, (X,), 1),
    "blur_downsample": Case(lambda impl, x: kernels.blur_downsample(x, filter_size=4, impl=impl), (X,), 1),
    "blur_upsample": Case(lambda impl, x: kernels.blur_upsample(x, impl=impl), (X,), 1),
    "reflection_pad2d": Case(lambda impl, x: kernels.reflection_pad2d(x, (1, 2, 0, 3), impl=impl), (X,), 1),
}
NO_IMPL = ("hdce_weight", "semantic_relation_loss")  # torch's own operators only


class Wrapped(Tensor):
    """A tensor without memory: every operator of torch goes to the tensor inside."""

    @staticmethod
    def __new__(cls, inside):
        return Tensor._make_wrapper_subclass(
            cls, inside.shape, strides=inside.stride(), dtype=inside.dtype, device=inside.device
        )

    def __init__(self, inside):
        self.inside = inside

    def __repr__(self):
        return f"Wrapped({self.inside})"

    def __tensor_flatten__(self):
        return ["inside"], None

    @staticmethod
    def __tensor_unflatten__(tensors, meta, size, stride):
        return Wrapped(tensors["inside"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        inside = tree_map_only(Wrapped, lambda t: t.inside, (args, kwargs or {}))
        out = tree_map_only(Tensor, Wrapped, func(*inside[0], **inside[1]))
        return return_and_correct_aliasing(func, args, kwargs or {}, out)


def near(got: Tensor, want: Tensor, most: float = 1e-4) -> str:
    """What is wrong with got; empty if nothing."""
    if got.shape != want.shape:
        return f"shape {tuple(got.shape)}, want {tuple(want.shape)}"
    error = (got.double() - want.double()).abs().max().item()
    return "" if error <= most else f"{error} off"


def check(got: Tensor, want: Tensor, most: float = 1e-4) -> None:
    assert not near(got, want, most), near(got, want, most)


MONCE = "monce_log_weight"
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
differentiable = {name: case for name, case in CASES.items() if case.differentiable}
every_gradient = pytest.mark.parametrize("case", differentiable.values(), ids=differentiable)


def _wrong_fake(case: Case) -> str:
    for dtype in (torch.float32, torch.bfloat16):
        for form in (torch.contiguous_format, torch.channels_last):
            tensors = case.tensors(dtype=dtype)
            tensors = case.leaves([t.contiguous(memory_format=form) if t.dim() == 4 else t for t in tensors])
            want = case.run("auto", *tensors)
            with FakeTensorMode() as mode:
                fakes = [mode.from_tensor(t) for t in tensors]
                got = case.run("auto", *fakes)
                grads = case.gradients(got.float().sum(), fakes)
            if (got.shape, got.stride(), got.dtype) != (want.shape, want.stride(), want.dtype):
                return f"{dtype}, {form}: {got.shape} {got.stride()} {got.dtype}"
            if any((g.shape, g.dtype) != (t.shape, t.dtype) for g, t in zip(grads, tensors)):
                return f"{dtype}, {form}: a gradient"
    return ""


def _wrong_wrapped(case: Case) -> str:
    tensors = case.leaves(case.tensors())
    plain = case.run("auto", *tensors)
    grads = case.gradients(plain, tensors, torch.ones_like(plain))
    for alone in (None, *range(len(tensors))):
        given = [Wrapped(t.detach()) if alone in (None, i) else t for i, t in enumerate(tensors)]
        got = case.run("auto", *given)
        if type(got) is not Wrapped or near(got.inside, plain):
            return f"only tensor {alone} wrapped"
    leaves = case.leaves([Wrapped(t.detach()) for t in tensors])
    ones = Wrapped(torch.ones_like(plain))
    for found in (
        case.gradients(case.run("auto", *leaves), leaves, ones),
        case.gradients(plain, tensors, ones),  # a fused forward, a wrapped gradient
    ):
        if any(near(getattr(g, "inside", g), want) for g, want in zip(found, grads)):
            return "a gradient"
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    wrong = {"fake": _wrong_fake, "wrapped": _wrong_wrapped}[sys.argv[1]]
    for name, case in CASES.items():
        what = wrong(case)
        if what:
            print(f"{name}: {what}")
