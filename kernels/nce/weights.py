"""What published contrastive methods put on the negatives (MoNCE, hDCE), and hDCE's companion loss (SRC).

Torch's own products and softmaxes around `kernels.sinkhorn`. All return float32 for narrower inputs, as logits are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from kernels._checks import check_flag, check_positive
from kernels._dtypes import product, wide
from kernels.nce.checks import check_keys, check_rows
from kernels.nce.reference import diagonal, unit_rows
from kernels.sinkhorn import sinkhorn

Tensor = torch.Tensor
COSTS = ("easy", "hard")


def monce_log_weight(
    q: Tensor,
    k: Tensor,
    *,
    eps: float = 1.0,
    cost: str = "easy",
    neg_term_weight: float = 1.0,
    iterations: int = 50,
    normalize: bool = False,
    detach: bool = False,
    impl: str = "auto",
) -> Tensor:
    """log w of MoNCE (Zhan et al. 2022, arXiv 2203.09333): negatives weighted by an optimal transport plan.

    w = plan * (S - 1) * neg_term_weight + 1e-8, the plan being `kernels.sinkhorn` of (1 - q k^T) / eps ("easy": unlike
    pairs weigh more) or q k^T / eps ("hard"), with -10 / eps on the diagonal.

    Args:
        q, k: (B, S, C), or (S, C) for one image; any floating dtype. No gradient reaches k.
        eps: > 0; 1 is the published code's default, 0.1 what its horse2zebra script takes.
        cost: "easy" or "hard".
        neg_term_weight: > 0.
        iterations: of Sinkhorn.
        normalize: divide rows by (norm + 1e-7) first.
        detach: no gradient through the weights either. The published code has one, through all iterations.
        impl: of `kernels.sinkhorn`.

    Returns:
        (B, S, S), or (S, S); float64 for float64, else float32.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device, shape or range; S < 2.
        kernels.BackendUnavailable: `impl` names an implementation that cannot run.
    """
    check_rows("q", q, least=2)
    check_keys("k", k, "q", q)
    check_positive("eps", eps)
    check_positive("neg_term_weight", neg_term_weight)
    if cost not in COSTS:
        raise ValueError(f"cost: got {cost!r}, want one of {', '.join(map(repr, COSTS))}")
    check_flag("normalize", normalize)
    check_flag("detach", detach)
    if detach:
        q = q.detach()
    eps, neg_term_weight = float(eps), float(neg_term_weight)
    similarity = product(_rows(q, normalize), _rows(k.detach(), normalize).transpose(-1, -2))
    kernel = similarity / eps if cost == "hard" else (1 - similarity) / eps
    log_plan = sinkhorn(_with_diagonal(kernel, -10 / eps), iterations, impl=impl)
    # log(plan * scale + 1e-8); entries of the plan may be far below the smallest float
    floor = log_plan.new_full((), math.log(1e-8))
    log_weight = _log_add(log_plan + _log((q.shape[-2] - 1) * neg_term_weight, log_plan), floor)
    return log_weight.view(*q.shape[:-1], q.shape[-2])


def hdce_weight(k: Tensor, gamma: float, *, normalize: bool = False) -> Tensor:
    """Weights of hDCE's similarities (Jung et al. 2022, "Exploring Patch-wise Semantic Relation for Contrastive
    Learning in Image-to-Image Translation Tasks"): w_ij = softmax_j(k_i.k_j / gamma) over its row's maximum.

    Args:
        k: (B, S, C), or (S, C) for one image; any floating dtype. The diagonal's products count as -10.
        gamma: > 0; published runs lower it, for instance from 50 to 10.
        normalize: divide rows by (norm + 1e-7) first.

    Returns:
        (B, S, S), or (S, S), without gradient, in [0, 1]; float64 for float64, else float32.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or range; S < 2.
    """
    check_rows("k", k, least=2)
    check_positive("gamma", gamma)
    check_flag("normalize", normalize)
    rows = _rows(k.detach(), normalize)
    logits = _with_diagonal(product(rows, rows.transpose(-1, -2)), -10.0)
    # a softmax over its maximum: its sum cancels. The maximum goes first: however small gamma is, 0 / gamma is 0
    weight = ((logits - logits.amax(-1, keepdim=True)) / float(gamma)).exp_()
    return weight.view(*k.shape[:-1], k.shape[-2])


def semantic_relation_loss(q: Tensor, k: Tensor, *, normalize: bool = True) -> Tensor:
    """Semantic relation consistency of the same paper: the Jensen-Shannon divergence between the relations of the
    patches in q and those in k.

    Relations are softmax over i of q_i.q_j, no temperature; the divergence is summed over all S^2 entries of an image.
    The published code takes one image.

    Args:
        q, k: (B, S, C), or (S, C) for one image; any floating dtype. No gradient reaches k.
        normalize: divide rows by (norm + 1e-7) first, as published.

    Returns:
        scalar, the mean over B; float64 for float64, else float32.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, device or shape; S < 2.
    """
    check_rows("q", q, least=2)
    check_keys("k", k, "q", q)
    check_flag("normalize", normalize)
    rows, keys = _rows(q, normalize), _rows(k.detach(), normalize)
    log_p = torch.log_softmax(product(rows, rows.transpose(-1, -2)), 1)
    log_q = torch.log_softmax(product(keys, keys.transpose(-1, -2)), 1)
    log_m = _log_add(log_p, log_q) - math.log(2)
    divergence = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * divergence.sum() / rows.shape[0]


def _log(value: float | Tensor, like: Tensor) -> float | Tensor:
    """log(value). A value made of sizes is a tensor while torch.jit.trace records, a symbol while torch.export does."""
    if isinstance(value, (int, float)) and not torch.compiler.is_compiling():
        return math.log(value)
    return (like.new_ones(()) * value).log()


def _rows(x: Tensor, normalize: bool) -> Tensor:
    """x as (B, S, C) in the dtype of the computation: products are never below float32, inside autocast either; eps and
    gamma would magnify what is rounded. Rows rounded to bfloat16 leave MoNCE's log weights 6e-4 off at eps = 1 and 7e-3
    at 0.1, against 3e-6, and spare 16 % of a call at most: of 4.7 ms for 256 patches of 256 numbers, forward and
    backward, the products are 0.8."""
    x = x if x.dim() == 3 else x[None]
    return unit_rows(x) if normalize else wide(x)


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b). The second derivative of torch.logaddexp is nan where a and b are 90 apart."""
    return torch.where(a >= b, a - F.logsigmoid(a - b), b - F.logsigmoid(b - a))


def _with_diagonal(x: Tensor, value: float) -> Tensor:
    return x.masked_fill(diagonal(x), value)
