"""MoNCE's and hDCE's weights and SRC, against the published formulas written out, in float64 and float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kernels

Tensor = torch.Tensor


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(q, k), rows of length 1, q near k."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(*shape, dtype=torch.float64, generator=generator)
    q = k + torch.randn(*shape, dtype=torch.float64, generator=generator)
    return F.normalize(q, dim=-1).to(dtype), F.normalize(k, dim=-1).to(dtype)


# ---- the published formulas, step by step ----------------------------------------------------------------------------


def published_monce(q: Tensor, k: Tensor, eps: float, cost: str, weight: float = 1.0, iterations: int = 50) -> Tensor:
    """Multiplicative Sinkhorn with marginals of ones."""
    s = q.shape[1]
    similarity = torch.bmm(q, k.detach().transpose(1, 2))
    exponent = similarity if cost == "hard" else 1 - similarity
    diagonal = torch.eye(s, dtype=torch.bool)[None]
    kernel = torch.exp(exponent.masked_fill(diagonal, -10) / eps)
    v = torch.ones(q.shape[0], s, 1, dtype=q.dtype)
    for _ in range(iterations):
        u = 1 / torch.bmm(kernel, v)
        v = 1 / torch.bmm(kernel.transpose(1, 2), u)
    plan = u * kernel * v.transpose(1, 2)
    return torch.log(plan * (s - 1) * weight + 1e-8)


def published_hdce(k: Tensor, gamma: float) -> Tensor:
    similarity = torch.bmm(k, k.transpose(1, 2))
    similarity = similarity.masked_fill(torch.eye(k.shape[1], dtype=torch.bool)[None], -10)
    w = torch.softmax(similarity / gamma, dim=2)
    return (w / w.max(dim=2, keepdim=True)[0]).detach()


def published_src(q: Tensor, k: Tensor) -> Tensor:
    """One image (S, C)."""

    def relation(x: Tensor) -> Tensor:
        x = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-7)
        return torch.softmax(x @ x.t(), dim=0)

    p, target = relation(q), relation(k).detach()
    middle = (p + target) / 2
    return 0.5 * ((p * (p / middle).log()).sum() + (target * (target / middle).log()).sum())


def value_and_gradient(f, q: Tensor, *others: Tensor, seed: int = 3) -> tuple[Tensor, Tensor]:
    q = q.clone().requires_grad_()
    y = f(q, *others)
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, q, g)[0]


# ---- MoNCE -----------------------------------------------------------------------------------------------------------

MONCE = pytest.mark.parametrize("cost", ["easy", "hard"])
EPS = pytest.mark.parametrize("eps", [1.0, 0.1])


@MONCE
@EPS
def test_monce_is_the_published_weight(cost, eps):
    q, k = features(2, 24, 8)
    got = value_and_gradient(lambda q: kernels.monce_log_weight(q, k, eps=eps, cost=cost, neg_term_weight=0.5), q)
    want = value_and_gradient(lambda q: published_monce(q, k, eps, cost, 0.5), q)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@MONCE
@EPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_monce_in_narrow_dtypes(cost, eps, dtype):
    q, k = features(2, 65, 16, dtype=dtype)
    value, gradient = value_and_gradient(lambda q: kernels.monce_log_weight(q, k, eps=eps, cost=cost), q)
    exact = value_and_gradient(lambda q: published_monce(q, k.double(), eps, cost), q.double())
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact[0], rtol=1e-4, atol=1e-4)
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    assert (gradient.double() - exact[1]).abs().max() <= limit * exact[1].abs().max()


def test_monce_where_the_multiplicative_form_fails():
    """eps = 0.01 puts exp(-1000) on the diagonal."""
    q, k = features(1, 33, 8, dtype=torch.float32)
    value, gradient = value_and_gradient(lambda q: kernels.monce_log_weight(q, k, eps=0.01, cost="hard"), q)
    assert value.isfinite().all() and gradient.isfinite().all()


def test_monce_gradcheck():
    q, k = features(2, 5, 3)
    op = lambda q: kernels.monce_log_weight(q, k, eps=0.5, iterations=4, normalize=True)  # noqa: E731
    assert torch.autograd.gradcheck(op, q.requires_grad_())
    assert torch.autograd.gradgradcheck(op, q)


def test_monce_gradient_goes_to_q_alone_and_nowhere_when_detached():
    q, k = (t.requires_grad_() for t in features(1, 9, 4))
    weight = kernels.monce_log_weight(q, k)
    assert torch.autograd.grad(weight.sum(), (q, k), allow_unused=True)[1] is None
    detached = kernels.monce_log_weight(q, k, detach=True)
    assert not detached.requires_grad and torch.equal(detached, weight)


def test_detaching_changes_the_loss_gradient_by_a_few_percent():
    q, k = features(1, 256, 64)
    q = torch.randn(1, 256, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    q = F.normalize(q, dim=-1).requires_grad_()

    def gradient(detach: bool) -> Tensor:
        logits = torch.bmm(q, k.transpose(1, 2)) / 0.07
        negatives = logits + kernels.monce_log_weight(q, k, detach=detach)
        diagonal = torch.eye(256, dtype=torch.bool)
        all_ = torch.where(diagonal, logits, negatives)
        return torch.autograd.grad(F.cross_entropy(all_[0], torch.arange(256)), q)[0]

    whole, cut = gradient(False), gradient(True)
    assert 0.005 < ((whole - cut).norm() / whole.norm()).item() < 0.15


def test_monce_takes_one_image_and_normalises():
    q, k = features(2, 12, 5)
    both = kernels.monce_log_weight(3 * q, 2 * k, normalize=True)
    torch.testing.assert_close(both, kernels.monce_log_weight(q, k), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kernels.monce_log_weight(q[1], k[1]), kernels.monce_log_weight(q, k)[1])


def test_monce_under_autocast_and_compile():
    q, k = features(1, 20, 8, dtype=torch.float32)
    want = kernels.monce_log_weight(q, k, eps=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kernels.monce_log_weight(q, k, eps=0.1), want)
    torch._dynamo.reset()
    f = lambda q: kernels.monce_log_weight(q, k, eps=0.1)  # noqa: E731
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(value_and_gradient(f, q), value_and_gradient(compiled, q)):
        torch.testing.assert_close(a, b)


# ---- hDCE and SRC ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [50.0, 10.0, 0.07])
def test_hdce_is_the_published_weight(gamma):
    _, k = features(2, 24, 8)
    k.requires_grad_()
    got = kernels.hdce_weight(k, gamma)
    assert not got.requires_grad
    torch.testing.assert_close(got, published_hdce(k, gamma))
    torch.testing.assert_close(kernels.hdce_weight(k[0], gamma), got[0])
    torch.testing.assert_close(kernels.hdce_weight(2 * k, gamma, normalize=True), got, rtol=1e-4, atol=1e-7)
    assert kernels.hdce_weight(k.bfloat16(), gamma).dtype == torch.float32


def test_src_is_the_published_loss():
    q, k = features(1, 24, 8)
    got = value_and_gradient(lambda q: kernels.semantic_relation_loss(q, k[0]), 3 * q[0])
    want = value_and_gradient(lambda q: published_src(q, k[0]), 3 * q[0])
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_src_is_the_mean_over_images_and_zero_between_equals():
    q, k = (t.requires_grad_() for t in features(3, 10, 4))
    each = [published_src(a, b) for a, b in zip(q, k)]
    got = kernels.semantic_relation_loss(q, k)
    torch.testing.assert_close(got, sum(each) / 3)
    assert torch.autograd.grad(got, (q, k), allow_unused=True)[1] is None
    torch.testing.assert_close(kernels.semantic_relation_loss(k, k).item(), 0.0)


def test_src_gradcheck():
    q, k = features(2, 4, 3)
    op = lambda q: kernels.semantic_relation_loss(q, k)  # noqa: E731
    assert torch.autograd.gradcheck(op, q.requires_grad_())
    assert torch.autograd.gradgradcheck(op, q)


def test_src_of_relations_that_underflow():
    """Inner products in the thousands: probabilities of 0 in float32, whose logarithm nobody may take."""
    q, k = (40 * t for t in features(1, 16, 4, dtype=torch.float32))
    value, gradient = value_and_gradient(lambda q: kernels.semantic_relation_loss(q, k, normalize=False), q)
    exact, _ = value_and_gradient(lambda q: kernels.semantic_relation_loss(q, k.double(), normalize=False), q.double())
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["monce", "relation"])
def test_second_derivatives_of_logarithms_far_apart(name):
    """A plan far below the floor of MoNCE's weights, relations 90 apart: the second derivative was NaN."""

    def penalty(dtype):
        q, k = (12 * t.to(dtype) for t in features(1, 16, 4))
        q.requires_grad_()
        if name == "monce":
            value = kernels.monce_log_weight(q / 12, k / 12, eps=0.05, iterations=5).sum()
        else:
            value = kernels.semantic_relation_loss(q, k, normalize=False)
        (first,) = torch.autograd.grad(value, q, create_graph=True)
        return torch.autograd.grad(first.square().sum(), q)[0].double()

    want = penalty(torch.float64)
    assert want.isfinite().all() and want.abs().max() > 0
    torch.testing.assert_close(penalty(torch.float32), want, rtol=1e-2, atol=1e-3 * want.abs().max().item())


# ---- arguments -------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 4, 3)
BAD = [
    (lambda: kernels.monce_log_weight([X], X), TypeError, "q: got list"),
    (lambda: kernels.monce_log_weight(X, None), TypeError, "k: got NoneType"),
    (lambda: kernels.monce_log_weight(X.int(), X), TypeError, "q: got torch.int32"),
    (lambda: kernels.monce_log_weight(X, X[:1]), ValueError, r"k: got shape \(1, 4, 3\), want q's"),
    (lambda: kernels.monce_log_weight(X, X.double()), TypeError, "k: got torch.float64, want q's"),
    (lambda: kernels.monce_log_weight(X, X.to("meta")), ValueError, "k: got device meta"),
    (lambda: kernels.monce_log_weight(X[0, 0], X[0, 0]), ValueError, r"q: got shape \(3,\)"),
    (lambda: kernels.monce_log_weight(X[:, :1], X[:, :1]), ValueError, "at least 2 rows"),
    (lambda: kernels.monce_log_weight(X, X, eps=0), ValueError, "eps: got 0, want a number > 0"),
    (lambda: kernels.monce_log_weight(X, X, eps="1"), TypeError, "eps: got str"),
    (lambda: kernels.monce_log_weight(X, X, cost="cosine"), ValueError, "cost: got 'cosine', want one of 'easy'"),
    (lambda: kernels.monce_log_weight(X, X, neg_term_weight=-1.0), ValueError, "neg_term_weight: got -1.0"),
    (lambda: kernels.monce_log_weight(X, X, iterations=0), ValueError, "iterations: got 0"),
    (lambda: kernels.monce_log_weight(X, X, normalize=1), TypeError, "normalize: got int"),
    (lambda: kernels.monce_log_weight(X, X, detach=None), TypeError, "detach: got NoneType"),
    (lambda: kernels.monce_log_weight(X, X, impl="fast"), ValueError, "impl: got 'fast'"),
    (lambda: kernels.hdce_weight(X, 0.0), ValueError, "gamma: got 0.0"),
    (lambda: kernels.hdce_weight(X[..., :0], 1.0), ValueError, "k: got shape"),
    (lambda: kernels.semantic_relation_loss(X, X[:, :3]), ValueError, "k: got shape"),
    (lambda: kernels.semantic_relation_loss(X, X, normalize="yes"), TypeError, "normalize: got str"),
]


@pytest.mark.parametrize("call, kind, text", BAD, ids=[text for _, _, text in BAD])
def test_bad_input_is_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
