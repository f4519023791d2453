"""Contrastive losses in plain torch: the oracle in float64, the fallback elsewhere, and the second derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels._dtypes import product, records_torch, wide
from kernels.nce.spec import EPS, Layer, Spec

Tensor = torch.Tensor


class _Widened(torch.autograd.Function):
    """float16 rows in float32. The gradient of a row of zeros, 1e7 times that of its normalised self, ends at float16's
    largest number instead of in infinity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.float()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        most = torch.finfo(torch.float16).max
        held = (x == 0).all(-1, keepdim=True) & grad.isfinite()
        return torch.where(held, grad.clamp(-most, most), grad).to(torch.float16)


class _WidenedForward(_Widened):
    """With forward-mode derivatives, at which torch.compile stops."""

    @staticmethod
    def jvp(ctx, dx):
        return dx.float()


def unit_rows(x: Tensor) -> Tensor:
    """x / (norm + EPS) over the last dimension, in float32 at least. vector_norm's gradient at a row of zeros is 0,
    where that of a plain root is nan; what is left there is the derivative of x / EPS, which is that of the whole."""
    if x.dtype == torch.float16 and torch.is_grad_enabled() and not records_torch():
        x = (_Widened if torch.compiler.is_compiling() else _WidenedForward).apply(x)
    x = wide(x)
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + EPS)


def log_sum(logits: Tensor) -> Tensor:
    """logsumexp over the last dimension. Of logits that are all -inf, a sum of nothing, it is -inf with gradient 0,
    where torch's gradient is nan."""
    nothing = logits.detach().amax(-1, keepdim=True) == float("-inf")
    total = torch.logsumexp(logits.masked_fill(nothing, 0.0), -1)
    return total.masked_fill(nothing.squeeze(-1), float("-inf"))


def diagonal(x: Tensor) -> Tensor:
    """Where (S, S) of x (..., S, S) is a row's own key. Not torch.eye, which onnxruntime has no operator for."""
    at = torch.arange(x.shape[-1], device=x.device)
    return at[:, None] == at


def rows(layer: Layer, spec: Spec) -> Tensor:
    """Losses (B, S), float32 or float64."""
    prepared = unit_rows if spec.normalize else wide
    q, k = prepared(layer.q), prepared(layer.k)
    negatives = None if layer.negatives is None else prepared(layer.negatives)
    positive = (q * k).sum(-1) / spec.temperature
    if negatives is None:
        logits = product(q, k.transpose(-1, -2))
    elif negatives.dim() == 3:
        logits = product(q, negatives.transpose(-1, -2))
    else:
        logits = product(q.flatten(0, 1), negatives.transpose(-1, -2)).unflatten(0, q.shape[:2])
    logits = logits / spec.temperature
    itself = None if layer.negatives is not None else diagonal(logits)
    if layer.similarity_weight is not None:
        weight = layer.similarity_weight.to(logits.dtype)
        # whatever weight a left-out pair has: in the gradient 0 times infinity would be nan
        logits = logits * (weight if itself is None else weight.masked_fill(itself, 0.0))
    if layer.log_weight is not None:
        logits = logits + layer.log_weight.to(logits.dtype)
    if itself is not None:
        logits = logits.masked_fill(itself, float("-inf"))
    margin = log_sum(logits) - positive
    # log(e^p + sum e^n) - p = log(1 + e^margin): no digits of a small loss are lost in the difference of two large logs
    # (softplus is that with a rest of e^-margin beyond the threshold; logsigmoid overflows in the older ONNX exporter)
    return margin if spec.decoupled else F.softplus(margin, threshold=40)
