"""PatchNCELoss where somebody else makes and calls it: by options, on layers, with batches of any size."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels.nce.images import mark_images

T = 0.07


def options(**others):
    return SimpleNamespace(
        **{"nce_T": T, "nce_includes_all_negatives_from_minibatch": False, "batch_size": 4, "num_patches": 12} | others
    )


def published(q, k, images, similarity=None):
    """CUT's loss of rows in words of its own: cross entropy of the positive against it and the other keys, whose
    diagonal is filled with -10 before the temperature."""
    similarity = similarity or (lambda a, b: a @ b.mT)
    found = []
    for a, b in zip(q.chunk(images), k.detach().chunk(images)):
        logits = similarity(a, b)
        positive = logits.diagonal()[:, None]
        others = logits.masked_fill(torch.eye(len(a), dtype=torch.bool), -10.0)
        found.append((torch.cat([positive, others], 1) / T).log_softmax(1)[:, 0].neg())
    return torch.cat(found)


def rows(images, patches, seed=0, width=8):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(images * patches, width, dtype=torch.float64, generator=generator) for _ in range(2))
    return F.normalize(q).requires_grad_(), F.normalize(k + q).requires_grad_()


def check(got, want, *inputs, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
    grads = (torch.autograd.grad(x.sin().sum(), inputs, retain_graph=True) for x in (got, want))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.abs().max().item()))


# ---- by options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, patches", [(1, 12), (1, 5), (4, 12), (4, 11)])
def test_options_of_cut(batch, patches):
    q, k = rows(batch, patches)
    loss = kernels.PatchNCELoss(options(batch_size=batch))
    check(loss(q, k), published(q, k, batch), q)
    assert not torch.autograd.grad(loss(q, k).sum(), k, allow_unused=True)[0]


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_all_negatives_by_options_need_no_sizes(batch):
    q, k = rows(batch, 12)
    loss = kernels.PatchNCELoss(options(nce_includes_all_negatives_from_minibatch=True, num_patches=1))
    check(loss(q, k), published(q, k, 1), q)


def test_arguments_win_over_options():
    q, k = rows(4, 12)
    opt = options(nce_includes_all_negatives_from_minibatch=True)
    check(kernels.PatchNCELoss(opt, all_negatives=False)(q, k), published(q, k, 4), q)
    check(kernels.PatchNCELoss(options(), all_negatives=True)(q, k), published(q, k, 1), q)
    check(kernels.PatchNCELoss(options(), num_patches=6)(q, k), published(q, k, 8), q)


def test_options_without_sizes():
    q, k = rows(2, 256)
    loss = kernels.PatchNCELoss(SimpleNamespace(nce_T=T))
    assert (loss.num_patches, loss.batch_size, loss.all_negatives) == (256, None, False)
    check(loss(q, k), published(q, k, 2), q)
    assert "num_patches=12, batch_size=4, all_negatives=False" in repr(kernels.PatchNCELoss(options()))


# ---- how many images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [12, 9, 5])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_smaller_batch_is_right_where_something_says_how_many(batch, patches):
    """What the published module does with its own batch size is another number or an error."""
    q, k = rows(batch, patches)
    want = published(q, k, batch)
    loss = kernels.PatchNCELoss(options())
    check(loss(q, k, batch_size=batch), want, q)
    check(loss(q.view(batch, patches, -1), k.view(batch, patches, -1)), want, q)
    check(kernels.PatchNCELoss(options(), num_patches=patches)(q, k), want, q)
    for marked in (q, k):  # the trainer may have made one of them anew
        mark_images(marked, batch)
        check(loss(q, k), want, q)
        del vars(marked)["_fused_images"]


def test_a_larger_layer_says_it_for_the_smaller_ones():
    large, small = rows(4, 12), rows(4, 5, seed=1)
    loss = kernels.PatchNCELoss(options())
    with pytest.raises(ValueError, match=r"20 rows, which may be 2 x 10 or 4 x 5 \(images x patches\)"):
        loss(*small)
    for got, (q, k) in zip(loss([large[0], small[0]], (large[1], small[1])), (large, small)):
        check(got, published(q, k, 4), q)


@pytest.mark.parametrize(
    "count, text",
    [
        (36, r"36 rows, which may be 3 x 12 or 4 x 9 .* want rows that can be of one number of images"),
        (12, r"12 rows, which may be 1 x 12 or 2 x 6 or 3 x 4 or 4 x 3"),
        (13, r"13 rows, want those of at most batch_size = 4 images with at most num_patches = 12 each"),
        (60, r"60 rows, want those of at most batch_size = 4 images"),
    ],
)
def test_rows_that_do_not_say_it_are_an_error(count, text):
    with pytest.raises(ValueError, match=text):
        kernels.PatchNCELoss(options())(*rows(1, count))


def test_marks_that_contradict_are_an_error():
    q, k = rows(4, 12)
    mark_images(q, 4)
    mark_images(k, 2)
    with pytest.raises(ValueError, match=r"feat_q, feat_k: got rows of batches of \[2, 4\] images"):
        kernels.PatchNCELoss(options())(q, k)


# ---- one call for all layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl, dtype", [("auto", torch.float64), ("cpu", torch.float32)])
def test_layers_in_one_call_are_the_layers_one_by_one(impl, dtype):
    layers = [rows(4, 12, seed=i, width=8 + i) for i in range(3)]
    queries = [q.detach().to(dtype).requires_grad_() for q, _ in layers]
    keys = [k.detach().to(dtype) for _, k in layers]
    loss = kernels.PatchNCELoss(options(), impl=impl)
    together = loss(queries, keys)
    assert isinstance(together, list) and [x.shape for x in together] == [(48,)] * 3
    one_by_one = [loss(q, k) for q, k in zip(queries, keys)]
    grads = [torch.autograd.grad(sum(x.mean() for x in found), queries) for found in (together, one_by_one)]
    for a, b in zip((*together, *grads[0]), (*one_by_one, *grads[1])):
        assert torch.equal(a, b)
    mixed = loss([queries[0].view(4, 12, -1), queries[1]], [keys[0].view(4, 12, -1), keys[1]])
    assert all(torch.equal(a, b) for a, b in zip(mixed, together))


# ---- relatives -------------------------------------------------------------------------------------------------------


def cosine(a, b):
    return F.cosine_similarity(a[:, None], b[None], dim=-1)


@pytest.mark.parametrize("scale, tolerance", [(1.0, 1e-5), (1e8, 1e-12)])
def test_dclgan(scale, tolerance):
    """Cosines over all rows of the batch. torch's are of x / max(norm, 1e-8), ours of x / (norm + 1e-7): 1e-7 of a row
    of length 1, which 1 / T makes 3e-6 of the loss, and nothing of longer rows."""
    q, k = (x.detach().mul(scale).requires_grad_() for x in rows(3, 12))
    loss = kernels.PatchNCELoss(options(), all_negatives=True, normalize=True)
    check(loss(q, k), published(q, k, 1, cosine), q, tolerance=tolerance)


def test_moco():
    """A caller with a queue (C, K), as MoCo and TUNIT have it."""
    q, k = rows(1, 12)
    k = k.detach()
    queue = F.normalize(torch.randn(8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(5)), dim=0)
    l_pos = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
    l_neg = torch.einsum("nc,ck->nk", [q, queue])
    logits = torch.cat([l_pos, l_neg], dim=1) / T
    want = F.cross_entropy(logits, torch.zeros(12, dtype=torch.long))
    check(kernels.patch_nce_loss(q, k, negatives=queue.t(), temperature=T), want, q)
    got = kernels.patch_nce_loss(q.float(), k.float(), negatives=queue.float().t(), temperature=T, impl="cpu")
    torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-6)  # a rounding of 6e-8, 14 times, of some rows


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others, kind, text",
    [
        ({"nce_T": 0.0}, ValueError, "nce_T of the options: got 0.0"),
        ({"nce_T": "0.07"}, TypeError, "nce_T of the options: got str"),
        ({"num_patches": 0}, ValueError, "num_patches: got 0"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size: got float"),
        ({"nce_includes_all_negatives_from_minibatch": "False"}, TypeError, "all_negatives: got str"),
    ],
)
def test_bad_options_are_named(others, kind, text):
    with pytest.raises(kind, match=text):
        kernels.PatchNCELoss(options(**others))


def test_what_is_neither_number_nor_options():
    with pytest.raises(TypeError, match="temperature: got dict, want a number"):
        kernels.PatchNCELoss({"nce_T": T})


def test_lists_that_do_not_fit_are_named():
    q, k = rows(4, 12)
    loss = kernels.PatchNCELoss(options())
    for given, kind, text in (
        (([], []), ValueError, "feat_q: got 0 layers"),
        (([q, q], [k]), ValueError, "feat_k: got 1 layers, want feat_q's 2"),
        (([q], k), TypeError, "feat_k: got torch.float64, want a tensor, or feat_q and feat_k as lists"),
        ((q, [k]), TypeError, "feat_k: got list"),
        ((None, None), TypeError, "feat_q: got NoneType"),
        (([q, q], [k, k[:3]]), ValueError, r"feat_k\[1\]: got shape \(3, 8\), want feat_q\[1\]'s"),
    ):
        with pytest.raises(kind, match=text):
            loss(*given)


def test_it_is_a_module_that_moves_and_copies():
    q, k = rows(4, 12)
    loss = kernels.PatchNCELoss(options()).to("cpu")
    assert not loss.state_dict() and torch.equal(copy.deepcopy(loss)(q, k), loss(q, k))


def test_compiled_it_counts_too():
    q, k = rows(4, 12)
    loss = kernels.PatchNCELoss(options())
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    check(compiled(q, k), loss(q, k), q)
    assert torch.equal(compiled([q], [k])[0], loss(q, k))
    mark_images(q, 4)
    assert torch.equal(compiled(q, k), loss(q, k))
