"""The norm family's calls that the triton cases and the GPU tests make, and how their results are held to the rule."""

from __future__ import annotations

import torch
from support.triton_numerics import DEVICE, close

import kernels
from kernels._layout import is_channels_last


def randn(*shape, dtype=torch.float32, seed=0, channels_last=False):
    t = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    if channels_last:
        t = t.contiguous(memory_format=torch.channels_last_3d if t.dim() == 5 else torch.channels_last)
    return t


def check(op, x, *others, gradient=None, terms=0.0):
    """op(x, *others, impl=...) and its gradients against the reference in the same dtype and in float64. terms, for dx:
    see `close`."""
    results = []
    for impl, cast in (("triton", None), ("reference", None), ("reference", torch.float64)):
        # detach keeps strides (`residual` may be a slice of a larger map); None stays None
        given = [None if t is None else (t.detach() if cast is None else t.to(cast)) for t in (x, *others)]
        given = [None if t is None else t.requires_grad_() for t in given]
        y = op(*given, impl=impl)
        if gradient is None:
            gradient = randn(*y.shape, dtype=y.dtype, seed=99)
        y.backward(gradient.to(y.dtype))
        results.append((y.detach(), *(None if t is None else t.grad for t in given)))
    names = ("y", "dx", *(f"d{i}" for i in range(1, 1 + len(others))))
    for name, got, torchs, exact in zip(names, *results):
        if got is None:
            assert exact is None
            continue
        close(name, got, torchs, exact, terms if name == "dx" else 0.0)
    y, dx = results[0][:2]
    if x.dim() == 4 and x.shape[1] > 1:
        assert is_channels_last(y) == is_channels_last(x) and dx.stride() == x.stride()
    return results[0]


def parameters(form, n, c, dtype=torch.float32):
    if form in ("plain",):
        return None, None
    shape = (c,) if form in ("affine", "layer") else (n, c)
    return randn(*shape, seed=5).to(dtype) * 0.5 + 1, randn(*shape, seed=6).to(dtype)


def operator(form, **options):
    """The public function of a form, called as op(x, scale, shift, residual, impl=...)."""

    def op(x, scale, shift, residual=None, *, impl):
        if form == "layer":
            return kernels.munit_layer_norm(x, scale, shift, residual=residual, impl=impl, **options)
        if form in ("plain", "affine"):
            return kernels.instance_norm(x, scale, shift, residual=residual, impl=impl, **options)
        offset = form == "sample+1"
        common = dict(residual=residual, impl=impl, **options)
        return kernels.adaptive_instance_norm(x, scale, shift, unit_offset=offset, **common)

    return op


def residual_of(kind, x):
    """None, a dense one, the inside of a map padded by one, or one of the other memory format."""
    if not kind:
        return None
    like = is_channels_last(x)
    if kind == "dense":
        return randn(*x.shape, dtype=x.dtype, seed=7, channels_last=like)
    if kind == "foreign":
        return randn(*x.shape, dtype=x.dtype, seed=7, channels_last=not like)
    n, c, h, w = x.shape
    return randn(n, c, h + 2, w + 2, dtype=x.dtype, seed=7, channels_last=like)[:, :, 1:-1, 1:-1]
