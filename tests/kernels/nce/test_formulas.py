"""Published figures, and the published formulas written out line by line, against patch_nce_loss."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.numerics import error

import kernels

IMPLS = pytest.mark.parametrize("impl, dtype", [("reference", torch.float64), ("cpu", torch.float32)])
T = 0.07


@IMPLS
@pytest.mark.parametrize("name", ["patchnce_b1", "patchnce_b4", "patchnce_b4_all"])
def test_golden_figures_of_cut(name, impl, dtype):
    wanted = golden.load(name)
    b, p = int(wanted["batch"]), int(wanted["patches"])
    q = F.normalize(golden.normal("q", (b * p, 256)))
    k = F.normalize(golden.normal("k", (b * p, 256)) + 8 * q)
    shape = (1, b * p, 256) if wanted["all_negatives"] else (b, p, 256)
    q = q.to(dtype).view(shape).requires_grad_()
    k = k.to(dtype).view(shape).requires_grad_()
    loss = kernels.patch_nce_loss(q, k, reduction="none", impl=impl)
    loss.mean().backward()
    # the figures were computed in float32: logits are cosines / 0.07, so a rounding of 6e-8 grows 14 times
    torch.testing.assert_close(loss.flatten().float(), torch.from_numpy(wanted["loss"]), atol=5e-6, rtol=0)
    gradient = torch.from_numpy(wanted["grad_q"])
    assert error(q.grad.flatten(0, 1), gradient) < 1e-5 * gradient.abs().max()
    assert k.grad is None


def test_golden_figures_in_float64():
    """The closed-form table: sum, sum of squares, first, middle and last."""
    q, k = (golden.wave((64, 16), phase) for phase in (0.1, 0.9))
    unit = [x / (x.norm(dim=1, keepdim=True) + 1e-7) for x in (q, k)]
    for shape, sums, grads in (
        ((2, 32, 16), (587.3618745, 13344.12292), (0.05101049232, 3.115051352)),
        ((1, 64, 16), (631.0491506, 14162.83515), (0.03156359977, 3.11112059)),
    ):
        for normalize, rows in ((False, unit), (True, (q, k))):
            a = rows[0].view(shape).clone().requires_grad_()
            losses = kernels.patch_nce_loss(a, rows[1].view(shape), reduction="none", normalize=normalize)
            assert golden.summary(losses)[:2] == pytest.approx(sums, rel=1e-9)
            if not normalize:
                losses.mean().backward()
                assert golden.summary(a.grad)[:2] == pytest.approx(grads, rel=1e-7)


def features(b=2, s=12, c=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(b, s, c, dtype=torch.float64, generator=generator) for _ in range(2))
    return F.normalize(q, dim=-1).requires_grad_(), F.normalize(k + q.detach(), dim=-1).requires_grad_()


def agree(published: torch.Tensor, ours: torch.Tensor, *inputs: torch.Tensor, impl="reference") -> None:
    """Values (unless None: a surrogate's mean nothing) and gradients with respect to the inputs."""
    tolerance = dict(rtol=1e-9, atol=1e-10) if impl == "reference" else dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.double(), published, **tolerance)
    want = torch.autograd.grad(published.sum(), inputs, retain_graph=True)
    got = torch.autograd.grad(ours.sum(), inputs, retain_graph=True)
    for a, b in zip(got, want):
        torch.testing.assert_close(a.double(), b, **tolerance)


def call(impl, q, k, **options):
    """patch_nce_loss in float32 for the C++ operators, gradients to the float64 inputs."""
    dtype = torch.float64 if impl == "reference" else torch.float32
    options = {name: v.to(dtype) if isinstance(v, torch.Tensor) else v for name, v in options.items()}
    return kernels.patch_nce_loss(q.to(dtype), k.to(dtype), reduction="none", impl=impl, **options)


def cut(feat_q, feat_k, batch, fill=-10.0):
    """CUT's module on rows (B * P, C), as published: positive in front, the diagonal filled, target 0."""
    feat_k = feat_k.detach()
    n, dim = feat_q.shape
    l_pos = torch.bmm(feat_q.view(n, 1, dim), feat_k.view(n, dim, 1)).view(n, 1)
    feat_q, feat_k = feat_q.reshape(batch, -1, dim), feat_k.reshape(batch, -1, dim)
    patches = feat_q.shape[1]
    l_neg = torch.bmm(feat_q, feat_k.transpose(2, 1))
    l_neg = l_neg.masked_fill(torch.eye(patches, dtype=torch.bool)[None], fill).view(-1, patches)
    out = torch.cat((l_pos, l_neg), 1) / T
    return F.cross_entropy(out, torch.zeros(n, dtype=torch.long), reduction="none")


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_cut_per_image_and_all_negatives(impl):
    q, k = features()
    rows = q.flatten(0, 1), k.flatten(0, 1)
    agree(cut(*rows, 2), call(impl, q, k).flatten(), q, impl=impl)
    everything = call(impl, q.reshape(1, 24, 8), k.reshape(1, 24, 8)).flatten()
    agree(cut(*rows, 1), everything, q, impl=impl)


def test_all_negatives_is_the_module_option_too():
    q, k = features()
    rows = q.flatten(0, 1), k.flatten(0, 1)
    agree(cut(*rows, 1), kernels.PatchNCELoss(all_negatives=True)(*rows), q)
    agree(cut(*rows, 2), kernels.PatchNCELoss(num_patches=12)(*rows), q)
    agree(cut(*rows, 2), kernels.PatchNCELoss()(q, k), q)
    agree(cut(*rows, 3), kernels.PatchNCELoss()(*rows, batch_size=3), q)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_queue_of_the_cut_paper_and_tunit(impl):
    """MoCo's form: logits [q.k, q.queue^T] / T, target 0, one queue (M, C) for everybody."""
    q, k = features()
    queue = F.normalize(torch.randn(50, 8, dtype=torch.float64), dim=-1)
    logits = torch.cat([torch.einsum("bsc,bsc->bs", q, k.detach())[..., None], q @ queue.T], -1) / T
    published = F.cross_entropy(logits.flatten(0, 1), torch.zeros(24, dtype=torch.long), reduction="none").view(2, 12)
    agree(published, call(impl, q, k, negatives=queue), q, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_negcut_generated_negatives(impl):
    """Wang et al. 2021: negatives (B, M, C) from a generator, no diagonal left out; the generator climbs the loss."""
    q, k = features()
    negatives = F.normalize(torch.randn(2, 20, 8, dtype=torch.float64), dim=-1).requires_grad_()
    logits = torch.cat([(q * k.detach()).sum(-1, keepdim=True), torch.bmm(q, negatives.transpose(1, 2))], -1) / T
    published = -torch.log_softmax(logits, -1)[..., 0]
    agree(published, call(impl, q, k, negatives=negatives), q, negatives, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_decoupled_contrastive_loss(impl):
    """DCL, Yeh et al. 2021, equation 6: -s_ii / T + log of the sum over the negatives alone."""
    q, k = features()
    s = torch.bmm(q, k.detach().transpose(1, 2)) / T
    negatives = s.exp() * (1 - torch.eye(12, dtype=torch.float64))
    published = -s.diagonal(dim1=1, dim2=2) + negatives.sum(-1).log()
    agree(published, call(impl, q, k, decoupled=True), q, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_hdce(impl):
    """hDCE (Jung et al. 2022): similarities times semantic weights; trained through exp(v - v.detach())."""
    q, k = features()
    keys = k.detach()
    gamma, diagonal = 0.5, torch.eye(12, dtype=torch.bool)
    weight = torch.softmax(torch.bmm(keys, keys.transpose(1, 2)).masked_fill(diagonal, -10.0) / gamma, 2)
    weight = weight / weight.amax(2, keepdim=True)
    positive = (q * keys).sum(-1, keepdim=True)
    negative = (torch.bmm(q, keys.transpose(1, 2)) * weight).masked_fill(diagonal, -10.0)
    v = torch.logsumexp((negative - positive) / T, -1)
    surrogate = (v - v.detach()).exp()
    ours = call(impl, q, k, decoupled=True, similarity_weight=weight)
    agree(v, ours, q, impl=impl)
    want, got = (torch.autograd.grad(x.sum(), q, retain_graph=True)[0] for x in (surrogate, ours))
    assert error(got, want) < (1e-12 if impl == "reference" else 1e-5)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_monce_weighting(impl):
    """MoNCE (Zhan et al. 2022): T log f is added to the similarities, and f has a gradient."""
    q, k = features()
    f = (torch.rand(2, 12, 12, dtype=torch.float64) + 0.1).requires_grad_()
    keys, diagonal = k.detach(), torch.eye(12, dtype=torch.bool)
    negative = (torch.bmm(q, keys.transpose(1, 2)) + T * f.log()).masked_fill(diagonal, -10.0)
    logits = torch.cat([(q * keys).sum(-1, keepdim=True), negative], -1) / T
    published = -torch.log_softmax(logits, -1)[..., 0]
    agree(published, call(impl, q, k, log_weight=f.log()), q, f, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_asp_row_weights(impl):
    """Adaptive supervised PatchNCE (Li et al. 2023): a weight per query, of mean 1."""
    q, k = features()
    weight = torch.rand(2, 12, dtype=torch.float64) + 0.5
    weight = weight / weight.mean()
    published = cut(q.flatten(0, 1), k.flatten(0, 1), 2).view(2, 12) * weight
    agree(published, call(impl, q, k, row_weight=weight), q, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_dclgan_cosine_of_the_minibatch(impl):
    """DCLGAN (Han et al. 2021): cosine similarities with every key of the minibatch."""
    q, k = features()
    a, b = q.reshape(24, 1, 8) * 3, k.detach().reshape(1, 24, 8) * 0.5
    cosine = F.cosine_similarity(a, b, dim=-1)
    published = F.cross_entropy(cosine / T, torch.arange(24), reduction="none")
    ours = call(impl, q.reshape(1, 24, 8) * 3, k.reshape(1, 24, 8) * 0.5, normalize=True)
    torch.testing.assert_close(ours.flatten().double(), published, rtol=0, atol=2e-5)  # F.cosine_similarity has no 1e-7


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_gradient_to_the_keys(impl):
    """CDS: the reference is the query, detached, and the keys learn."""
    q, k = features()
    s = torch.bmm(q.detach(), k.transpose(1, 2)) / T
    published = -torch.log_softmax(s, -1).diagonal(dim1=1, dim2=2)
    agree(published, call(impl, q.detach(), k, detach_keys=False), k, impl=impl)


def test_the_filled_diagonal_is_nothing_at_the_published_temperature():
    q, k = features()
    rows = q.flatten(0, 1), k.flatten(0, 1)
    assert error(cut(*rows, 2), cut(*rows, 2, fill=float("-inf"))) < 1e-12
