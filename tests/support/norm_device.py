"""The norm family's calls that the cases of the device implementations make, and the rule for their results."""

from __future__ import annotations

import functools

import torch
from support.device_numerics import DEVICE, close

import kernels
from kernels._layout import is_channels_last

PATHS = ("resident", "merged", "combined")
# The kernels of forward and backward, by path.
NAMES = {
    "triton": {
        "resident": ["forward_resident", "backward_resident"],
        "merged": ["chunk_stats", "forward_apply", "chunk_sums", "backward_apply"],
        "combined": ["chunk_stats", "combine_stats", "forward_apply", "chunk_sums", "combine_sums", "backward_apply"],
    },
    "cuda": {
        "resident": ["forward_held", "backward_held"],
        "merged": ["chunk_moments", "forward_apply", "chunk_sums", "backward_apply"],
        "combined": [
            *("chunk_moments", "combine_moments", "forward_apply"),
            *("chunk_sums", "combine_sums", "backward_apply"),
        ],
    },
}


def force(monkeypatch, impl, path):
    """Planes stay whole whatever their size, or small ones take the way of large ones, in several pieces, whose results
    the second sweep merges or finds combined."""
    merge = 1 << 20 if path == "merged" else 0
    if impl == "cuda":
        from kernels.norm import cut_cuda, launch_cuda

        monkeypatch.setattr(launch_cuda, "HELD", path == "resident")
        monkeypatch.setattr(cut_cuda, "MERGE_IN_APPLY", merge)
        launch_cuda._plans.clear()
    else:
        from kernels.norm import launch_triton

        resident = 1 << 16 if path == "resident" else 0
        monkeypatch.setattr(launch_triton, "RESIDENT_FORWARD", resident)
        monkeypatch.setattr(launch_triton, "RESIDENT_BACKWARD", resident)
        monkeypatch.setattr(launch_triton, "MAX_CHUNKS", 3)
        monkeypatch.setattr(launch_triton, "MERGE_IN_APPLY", merge)
        launch_triton.configure.cache_clear()


def restore(impl):
    """After `force`: what was planned under it is forgotten."""
    if impl == "cuda":
        from kernels.norm import launch_cuda

        launch_cuda._plans.clear()
    else:
        from kernels.norm import launch_triton

        launch_triton.configure.cache_clear()


def randn(*shape, dtype=torch.float32, seed=0, channels_last=False, device=DEVICE):
    t = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    if channels_last:
        t = t.contiguous(memory_format=torch.channels_last_3d if t.dim() == 5 else torch.channels_last)
    return t


on_host = functools.partial(randn, device="cpu")  # for the emulation, also where there is a GPU


def check(impl, op, x, *others, gradient=None, terms=0.0):
    """op(x, *others, impl=impl) and its gradients against the reference in the same dtype and in float64. terms, for
    dx: see `close`."""
    results = []
    for name, cast in ((impl, None), ("reference", None), ("reference", torch.float64)):
        # detach keeps strides (`residual` may be a slice of a larger map); None stays None
        given = [None if t is None else (t.detach() if cast is None else t.to(cast)) for t in (x, *others)]
        given = [None if t is None else t.requires_grad_() for t in given]
        y = op(*given, impl=name)
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
