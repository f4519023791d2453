"""Inputs of the kernels of patch_nce_loss for GPUs, and what their results are compared with.

Plain torch, in the rule of device_numerics.py, is the reference in float32; for 16-bit inputs, which the reference
widens, it is an expression with products of 16-bit matrices (`narrow`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.device_numerics import DEVICE, close

from kernels.nce import patch_nce_loss
from kernels.nce.spec import EPS

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
NAMES = ("q", "k", "negatives", "log_weight")
FORMS = {
    "in-image": ((2, 33, 37), None),
    "one problem": ((1, 66, 20), None),
    "negatives": ((2, 19, 24), (2, 70)),
    "shared negatives": ((3, 7, 33), (41,)),
}


def randn(*shape, dtype=FLOAT, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def narrow(q, k, *, negatives, log_weight, similarity_weight, temperature, normalize, decoupled):
    """The losses as one would write them for 16-bit tensors: products in 16 bits, the rest in float32."""

    def unit(x):
        return (x / (torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) + EPS)).to(x.dtype)

    n = k if negatives is None else negatives
    if normalize:
        q, k, n = unit(q), unit(k), unit(n)
    positive = (q * k).sum(-1).float() / temperature
    z = (q @ n.transpose(-1, -2)).float() / temperature
    if similarity_weight is not None:
        z = z * similarity_weight.float()
    if log_weight is not None:
        z = z + log_weight.float()
    if negatives is None:
        z = z.masked_fill(torch.eye(z.shape[-1], dtype=torch.bool, device=z.device), float("-inf"))
    margin = torch.logsumexp(z, -1) - positive
    return margin if decoupled else F.softplus(margin)


def inputs(shape, negatives=None, weights="", dtype=FLOAT, seed=0, spread=1.0):
    """Tensors by argument. negatives: (M,) shared or (B, M). weights: "log", "similarity", "both" or none."""
    b, s, c = shape
    q = randn(b, s, c, dtype=dtype, seed=seed) * spread
    given = dict(q=q, k=(0.6 * q.float() + 0.8 * randn(b, s, c, seed=seed + 1) * spread).to(dtype))
    given["negatives"] = None if negatives is None else randn(*negatives, c, dtype=dtype, seed=seed + 2) * spread
    count = s if negatives is None else negatives[-1]
    logs = randn(b, s, count, seed=seed + 3) if weights in ("log", "both") else None
    similarities = randn(b, 1, count, seed=seed + 4).abs() if weights in ("similarity", "both") else None
    return given | {"log_weight": logs, "similarity_weight": similarities}


def leaves(given, cast=None):
    made = {n: None if t is None else (t.detach() if cast is None else t.to(cast)) for n, t in given.items()}
    made = {n: t if t is None else t.clone() for n, t in made.items()}
    for name in NAMES:
        if made[name] is not None:
            made[name].requires_grad_()
    return made


def outcome(given, impl, gradient=None, cast=None, **options):
    """Losses of rows and all gradients by name."""
    own = leaves(given, cast)
    # logits of a few units: of z, exponentials have an error of z roundings, torch's as well as ours
    temperature = 0.3 if options.get("normalize") else 0.3 * own["q"].shape[-1] ** 0.5
    options = dict(dict(temperature=temperature, normalize=False, decoupled=False), **options)
    if impl == "narrow":
        loss = narrow(**own, **options)
    else:
        q, k = own.pop("q"), own.pop("k")
        loss = patch_nce_loss(q, k, **own, **options, detach_keys=False, reduction="none", impl=impl)
        own |= {"q": q, "k": k}
    if gradient is None:
        gradient = randn(*loss.shape, seed=99)
    loss.backward(gradient.to(loss.dtype))
    return {"loss": loss.detach()} | {n: own[n].grad for n in NAMES if own[n] is not None}


def check(impl, given, gradient=None, terms=0.0, **options):
    dtype = given["q"].dtype
    ours = outcome(given, impl, gradient, **options)
    torchs = outcome(given, "reference" if dtype == FLOAT else "narrow", gradient, **options)
    exact = outcome(given, "reference", gradient, cast=torch.float64, **options)
    for name, want in exact.items():
        close(name, ours[name], torchs[name], want, terms if name in "qk" else 0.0)
    return ours
