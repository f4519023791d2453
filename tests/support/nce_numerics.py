"""Inputs of the contrastive losses, and the rule they are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.numerics import FLOOR, error

import kernels

Tensor = torch.Tensor


def problem(b: int, s: int, c: int, m: int | None = None, *, shared: bool = True, weights: bool = False, seed: int = 0):
    """Tensor arguments of patch_nce_loss, float64, keys near their queries; with m negatives of their own if given."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, dtype=torch.float64, generator=generator)

    scale = c**-0.5
    q = randn(b, s, c) * scale
    given = {"q": q, "k": 0.7 * q + randn(b, s, c) * scale}
    if m is not None:
        given["negatives"] = randn(*((m, c) if shared else (b, m, c))) * scale
    if weights:
        given["log_weight"] = randn(b, s, m or s)
        given["similarity_weight"] = randn(b, s, m or s).sigmoid()
    return given


def rounded(given: dict, dtype: torch.dtype) -> dict:
    return {name: t.to(dtype).double() for name, t in given.items()}


def outcome(f, given: dict, dtype: torch.dtype, seed: int = 1) -> dict[str, Tensor]:
    """Losses of f(**given) in `dtype`, and every gradient, for a random gradient of the rows."""
    tensors = {name: t.to(dtype).detach() for name, t in given.items()}
    wanted = [name for name in tensors if name != "similarity_weight"]
    for name in wanted:
        tensors[name].requires_grad_()
    losses = f(**tensors)
    g = torch.randn(losses.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(losses.dtype)
    grads = torch.autograd.grad(losses, [tensors[name] for name in wanted], g)
    return {"losses": losses.detach()} | {f"d{name}": grad for name, grad in zip(wanted, grads)}


def ours(impl: str, **options):
    return lambda **given: kernels.patch_nce_loss(**given, detach_keys=False, reduction="none", impl=impl, **options)


def stock(*, temperature: float = 0.07, normalize: bool = False, decoupled: bool = False):
    """What one would write with torch, every step in the dtype of the inputs."""

    def unit(x):
        return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-7)

    def f(q, k, negatives=None, log_weight=None, similarity_weight=None):
        if normalize:
            q, k = unit(q), unit(k)
            negatives = None if negatives is None else unit(negatives)
        positive = (q * k).sum(-1, keepdim=True) / temperature
        logits = q @ (k if negatives is None else negatives).transpose(-1, -2) / temperature
        if similarity_weight is not None:
            logits = logits * similarity_weight
        if log_weight is not None:
            logits = logits + log_weight
        if negatives is None:
            logits = logits.masked_fill(torch.eye(q.shape[1], dtype=torch.bool), float("-inf"))
        if decoupled:
            return torch.logsumexp(logits, -1) - positive.squeeze(-1)
        logits = torch.cat([positive, logits], -1)
        target = torch.zeros(logits.shape[:-1], dtype=torch.long)
        return F.cross_entropy(logits.movedim(-1, 1), target, reduction="none")

    return f


def check(got: dict, torchs: dict, exact: dict, dtype: torch.dtype, what: object = "") -> None:
    """Our error is at most twice torch's own in the same dtype, plus a few roundings of the largest value.

    The losses' own floor is a rounding of the logits they are differences of, up to 1 / temperature = 14. A negative's
    gradient sums terms of that size over all queries: chance can make the sum small, but not its rounding.
    """
    queries = exact["losses"].numel()
    for name, want in exact.items():
        eps = torch.finfo(torch.float32 if name in ("losses", "dlog_weight") else dtype).eps
        floor = {"losses": 14.0, "dnegatives": queries**0.5}.get(name, 0.0)
        size = max(want.abs().max().item(), floor)
        limit = 2 * error(torchs[name], want) + FLOOR * eps * size
        assert error(got[name], want) <= limit, (what, name, error(got[name], want), limit)
