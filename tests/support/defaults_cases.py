"""Every public operator and module under torch.set_default_device and torch.set_default_dtype: a tensor that is made
without saying where or as what shows as another result, another dtype or an error. Used by test_defaults.py and, for
the triton kernels, by test_triton_defaults.py."""

from __future__ import annotations

import contextlib

import torch

import kernels


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)


X = _noise(2, 4, 10, 9)
C, NC, ROWS, BANK = _noise(4, seed=1), _noise(2, 4, seed=2), _noise(2, 6, 8, seed=3), _noise(7, 8, seed=4)
KEYS, SQUARE = _noise(2, 6, 8, seed=5), _noise(2, 6, 6, seed=6).abs()


def _sampled(maps, impl, **options):
    generator = torch.Generator("cpu").manual_seed(3)
    patches, ids = kernels.sample_patches(maps, 5, generator=generator, impl=impl, **options)
    return [*patches, *ids]


# name: (what is computed from the leaves and impl, the leaves)
CASES = {
    "instance_norm": (
        lambda i, x, w, b, r: kernels.instance_norm(x, w, b, residual=r, activation="relu", padding=1, impl=i),
        (X, C, C, X),
    ),
    "instance_norm, 16 bits": (
        lambda i, x: kernels.instance_norm(x.bfloat16(), activation="leaky_relu", impl=i),
        (X,),
    ),
    "adaptive_instance_norm": (
        lambda i, x, s, t: kernels.adaptive_instance_norm(x, s, t, unit_offset=True, activation="tanh", impl=i),
        (X, NC, NC),
    ),
    "adain": (lambda i, x, y: kernels.adain(x, y, alpha=0.7, impl=i), (X, X)),
    "munit_layer_norm": (lambda i, x, g, b: kernels.munit_layer_norm(x, g, b, impl=i), (X, C, C)),
    "blur_downsample": (lambda i, x: kernels.blur_downsample(x, filter_size=7, impl=i), (X,)),
    "blur_upsample": (lambda i, x: kernels.blur_upsample(x, impl=i), (X,)),
    "reflection_pad2d": (lambda i, x: kernels.reflection_pad2d(x, (1, 2, 0, 3), impl=i), (X,)),
    "sample_patches": (lambda i, x, y: _sampled([x, y], i), (X, X)),
    "sample_patches, all": (lambda i, x: kernels.sample_patches([x], None, impl=i)[0], (X,)),
    "sample_patches, given": (lambda i, x: kernels.sample_patches([x], ids=[[3, 0, 3]], impl=i)[0], (X,)),
    "tap_patches": (lambda i, x: list(kernels.tap_patches(x * 1.0, [1, 5, 1], impl=i)), (X,)),
    "patch_nce_loss": (
        lambda i, q, k: kernels.patch_nce_loss(q, k, normalize=True, detach_keys=False, impl=i),
        (ROWS, KEYS),
    ),
    "patch_nce_loss, everything": (
        lambda i, q, k, n, w: kernels.patch_nce_loss(
            [q, q], [k, k], negatives=[n, n], decoupled=True, row_weight=[w, w], reduction="none", impl=i
        ),
        (ROWS, KEYS, BANK, SQUARE[..., 0].contiguous()),
    ),
    "patch_nce_loss, weights": (
        lambda i, q, k, w, s: kernels.patch_nce_loss(q, k, log_weight=w, similarity_weight=s.detach(), impl=i),
        (ROWS, KEYS, SQUARE, SQUARE),
    ),
    "monce_log_weight": (lambda i, q, k: kernels.monce_log_weight(q, k, iterations=3, impl=i), (ROWS, KEYS)),
    "sinkhorn": (lambda i, x: kernels.sinkhorn(x, 3, impl=i), (SQUARE,)),
    "hdce_weight": (lambda i, k: kernels.hdce_weight(k, 5.0, normalize=True), (KEYS,)),
    "semantic_relation_loss": (lambda i, q, k: kernels.semantic_relation_loss(q, k), (ROWS, KEYS)),
}
# each module, made before the default changes and called after
MODULES = {
    "InstanceNorm1d": lambda i: _shaped(kernels.InstanceNorm1d(4, affine=True, track_running_stats=True, impl=i), 90),
    "InstanceNorm3d": lambda i: _shaped(kernels.InstanceNorm3d(4, affine=True, impl=i), 2, 5, 9),
    "InstanceNorm2d": lambda i: kernels.InstanceNorm2d(4, affine=True, track_running_stats=True, impl=i),
    "MunitLayerNorm": lambda i: kernels.MunitLayerNorm(4, impl=i),
    "BlurDownsample": lambda i: kernels.BlurDownsample(4, impl=i),
    "BlurUpsample": lambda i: kernels.BlurUpsample(4, impl=i),
    "ReflectionPad2d": lambda i: kernels.ReflectionPad2d(2, impl=i),
    "AdaptiveInstanceNorm2d": lambda i: _with(kernels.AdaptiveInstanceNorm2d(4, impl=i), NC, NC),
    "PatchNCELoss": lambda i: _on_rows(kernels.PatchNCELoss(num_patches=6, impl=i)),
    "PatchSampler": lambda i: _maps(kernels.PatchSampler(None, impl=i)),
}


def _shaped(module, *spatial):
    return lambda x: module(x.reshape(*x.shape[:2], *spatial))


def _with(module, *arguments):
    return lambda x: module(x, *arguments)


def _on_rows(module):
    return lambda x: module(ROWS.flatten(0, 1) + x.sum() * 0, KEYS.flatten(0, 1))


def _maps(module):
    return lambda x: module([x])[0]


DEFAULTS = {
    "meta device": {"device": "meta"},
    "float64": {"dtype": torch.float64},
    "float16": {"dtype": torch.float16},
    "bfloat16 on meta": {"dtype": torch.bfloat16, "device": "meta"},
}


@contextlib.contextmanager
def defaults(device=None, dtype=torch.float32):
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def everything(compute, leaves, device) -> list[torch.Tensor]:
    """Results, gradients, and gradients of a function of those."""
    given = [leaf.to(device).requires_grad_() for leaf in leaves]
    found = compute(*given)
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    derivable = [t for t in found if t.requires_grad]
    if not derivable:
        return found
    value = sum(t.float().square().sum() for t in derivable)
    first = torch.autograd.grad(value, given, retain_graph=True, allow_unused=True)
    again = torch.autograd.grad(value, given, create_graph=True, allow_unused=True)
    curved = [g for g in again if g is not None and g.requires_grad]
    second = torch.autograd.grad(sum(g.square().sum() for g in curved), given, allow_unused=True) if curved else ()
    return [t.detach() for t in (*found, *first, *second) if t is not None]


def check(compute, leaves, device, changed: dict) -> None:
    want = everything(compute, leaves, device)
    with defaults(**changed):
        got = everything(compute, leaves, device)
    assert len(got) == len(want)
    for ours, theirs in zip(got, want):
        assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)
        assert torch.equal(ours, theirs), (ours - theirs).abs().max()
