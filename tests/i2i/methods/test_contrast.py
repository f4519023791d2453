"""Contrastive losses against their formulas in float64."""

import pytest
import torch

from i2i.methods import CUT
from i2i.methods.contrast import contrastive_loss

TINY = {"crop_size": 32, "ngf": 4, "ndf": 4, "generator": "resnet_4blocks", "num_patches": 8}


T = 0.07


def features(seed: int, width: int = 6) -> list[torch.Tensor]:
    """Rows (B, P, C) of two layers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 8, width, generator=generator, dtype=torch.float64) for _ in range(2)]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-7)


def loss_of_rows(q, negatives, positive, *, log_weight=0.0, weight=1.0, decoupled=False, own_key=True):
    """Mean over the rows of one problem: log of what is summed over the negatives, and the positive, minus the latter.
    With `own_key`, negative i of row i is the positive itself and does not count."""
    logits = weight * (q @ negatives.T) / T + log_weight
    if own_key:
        logits = logits.masked_fill(torch.eye(len(q), dtype=torch.bool), -torch.inf)
    positive = (q * positive).sum(1) / T
    if not decoupled:
        logits = torch.cat([positive[:, None], logits], 1)
    return (logits.logsumexp(1) - positive).mean()


def transport(q, k, eps):
    """Plan of 50 Sinkhorn iterations between the patches of an image; unlike pairs attract."""
    kernel = ((1 - q @ k.T) / eps).masked_fill(torch.eye(len(q), dtype=torch.bool), -10 / eps).exp()
    u = torch.ones(len(q), dtype=torch.float64)
    for _ in range(50):
        v = 1 / (kernel.T @ u)
        u = 1 / (kernel @ v)
    return u[:, None] * kernel * v


def relations(x):
    return torch.softmax(x @ x.T, 0)


def divergence(p, q):
    middle = (p + q) / 2
    return 0.5 * ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum())


def nce(q, k):
    return loss_of_rows(q, k, k)


def dcl(q, k):
    return loss_of_rows(q, k, k, decoupled=True)


def monce(q, k):
    weight = transport(q, k, 0.5) * (len(q) - 1) + 1e-8
    return loss_of_rows(q, k, k, log_weight=weight.log())


def hdce(q, k):
    alike = torch.softmax((k @ k.T).masked_fill(torch.eye(len(k), dtype=torch.bool), -10) / 2.0, 1)
    weight = alike / alike.amax(1, keepdim=True)
    # lambda_nce = 3 multiplies the whole below, but not the relation loss of weight 0.25
    src = divergence(relations(q), relations(k))
    return loss_of_rows(q, k, k, weight=weight, decoupled=True) + 0.25 * src / 3


@pytest.mark.parametrize("formula", [nce, dcl, monce, hdce])
def test_contrast_is_its_formula(formula):
    model = CUT(
        CUT.Config(**TINY, lambda_nce=3, contrast=formula.__name__, monce_eps=0.5, hdce_gamma=2, lambda_src=0.25)
    )
    queries, keys = features(0), features(1)
    found = contrastive_loss(model.config, [q.requires_grad_() for q in queries], keys)
    problems = [(unit(q[b]), unit(k[b])) for q, k in zip(queries, keys, strict=True) for b in range(2)]
    wanted = 3 * sum(formula(q, k) for q, k in problems) / len(problems)
    # -10 / T on the diagonal of MoNCE's kernel is e^-20 here; the rest is the same arithmetic in another order
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(loss, queries) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("contrast", ["nce", "dcl"])
def test_negatives_of_the_minibatch(contrast):
    model = CUT(CUT.Config(**TINY, contrast=contrast, negatives="minibatch"))
    queries, keys = features(0), features(1)
    pairs = [(unit(q.flatten(0, 1)), unit(k.flatten(0, 1))) for q, k in zip(queries, keys, strict=True)]
    wanted = sum(loss_of_rows(q, k, k, decoupled=contrast == "dcl") for q, k in pairs) / 2
    torch.testing.assert_close(contrastive_loss(model.config, queries, keys), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("contrast", ["nce", "dcl"])
def test_negatives_from_a_bank(contrast):
    model = CUT(CUT.Config(**TINY, contrast=contrast, negatives="external", queue_size=8))
    queries, keys = features(0), features(1)
    bank = torch.stack([layer[0] for layer in features(2)])
    options = {"decoupled": contrast == "dcl", "own_key": False}
    layers = [
        (unit(q.flatten(0, 1)), unit(n), unit(k.flatten(0, 1))) for q, n, k in zip(queries, bank, keys, strict=True)
    ]
    wanted = sum(loss_of_rows(*layer, **options) for layer in layers) / 2
    torch.testing.assert_close(contrastive_loss(model.config, queries, keys, bank), wanted, rtol=1e-12, atol=0)
