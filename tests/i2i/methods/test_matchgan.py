"""MatchGAN's step against its formulas: pairs, alternating batches, targets."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.method_steps import assert_gradients, changed, in_float64, record_gradients, resumed, state

from i2i.errors import UsageError
from i2i.methods.matchgan import DIFFERENT, SAME, MatchGAN, MatchGANConfig

TINY = {
    "crop_size": 16,
    "g_conv_dim": 4,
    "d_conv_dim": 4,
    "g_repeat_num": 1,
    "d_repeat_num": 3,
    "selected_attrs": ("A", "B", "C"),
    "exclusive": ("A+B",),
}


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes of four images."""
    classes = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]])
    return golden.image("x", (16, 3, 16, 16)).to(dtype), classes.repeat_interleave(4, 0)


def test_pairs_are_the_published_ones():
    """By class of images sorted in fours; every image of a pair's two halves is another one."""
    assert len(set(SAME + DIFFERENT)) == 16
    assert all(a // 4 == b // 4 and a != b for a, b in SAME)
    assert all(a // 4 != b // 4 for a, b in DIFFERENT)


@pytest.mark.parametrize("labelled", [True, False])
def test_losses_and_gradients_are_those_of_the_formulas(labelled):
    """Pairs are scored as published: features of both images anew, one convolution of the two maps."""
    model = in_float64(MatchGAN(MatchGANConfig(**TINY, labelled_percentage=10, n_critic=1)))
    model.iteration = 0 if labelled else 1
    gradients = record_gradients(model)
    x, c = batch()
    row = model.step(x, c if labelled else torch.full_like(c, torch.nan))

    D, G = model.D, model.G
    table = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1]])
    targets = table[torch.randperm(6, generator=torch.Generator().manual_seed(0))[:4]].repeat(4, 1)
    share = torch.rand(16, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()

    def classification(images, labels):
        return F.binary_cross_entropy(D(images)[1].sigmoid(), labels.double(), reduction="none").sum() / 16

    def match(images):
        terms = []
        for label, pairs in ((1, SAME), (0, DIFFERENT)):
            for a, b in pairs:
                both = torch.cat([D.main(images[a : a + 1]), D.main(images[b : b + 1])], 1)
                terms.append(-D.conv3(both).flatten().log_softmax(0)[label])
        return sum(terms) / 16

    fake = G(x, targets)
    mixed = (share * x + (1 - share) * fake).detach().requires_grad_()
    slope = torch.autograd.grad(D(mixed)[0].sum(), mixed, create_graph=True)[0]
    penalty = (slope.square().sum((1, 2, 3)).sqrt() - 1).square().mean()
    d_loss = D(fake.detach())[0].mean() - D(x)[0].mean() + 10 * penalty
    by_target = torch.stack([fake[4 * source + target] for target in range(4) for source in range(4)])
    sorted_targets = torch.stack([targets[4 * source + target] for target in range(4) for source in range(4)])
    assert all(torch.equal(sorted_targets[4 * i], sorted_targets[4 * i + j]) for i in range(4) for j in range(4))
    g_loss = -D(fake)[0].mean() + classification(fake, targets) + 0.5 * match(by_target)
    wanted = {"G_match": match(by_target), "G_cls": classification(fake, targets)}
    if labelled:
        wanted |= {"D_cls": classification(x, c), "D_match": match(x), "G_rec": (x - G(fake, c)).abs().mean()}
        d_loss = d_loss + wanted["D_cls"] + 0.5 * wanted["D_match"]
        g_loss = g_loss + 10 * wanted["G_rec"]
    for name in ("G_match", "G_cls", "D_cls", "D_match", "G_rec"):
        want = wanted[name].detach() if name in wanted else torch.zeros(())
        torch.testing.assert_close(row[name].double(), want.double(), atol=1e-12, rtol=1e-12, msg=name)
    # Heads without a loss have a gradient of 0, not none: Adam goes on by their momentum.
    d_loss = d_loss + 0 * (D.conv2.weight.sum() + D.conv3.weight.sum())
    assert_gradients(gradients["D"], d_loss, D)
    assert_gradients(gradients["G"], g_loss, G)


def test_trunk_of_d_runs_twice_in_its_update_and_once_in_gs():
    """On 48 images, of which 32 at once, and 16; the published code runs it on 80 and 48."""
    model = MatchGAN(MatchGANConfig(**TINY, n_critic=1))
    seen = []
    model.D.main.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    model.step(*batch(torch.float32))
    assert seen == [32, 16, 16]


def test_it_alternates_unless_all_is_labelled():
    few, all_labelled = (MatchGAN(MatchGANConfig(**TINY, labelled_percentage=p)) for p in (1, 100))
    assert [few.labelled, all_labelled.labelled] == [True, True]
    x, c = batch(torch.float32)
    for model in (few, all_labelled):
        model.step(x, c)
    assert [few.labelled, all_labelled.labelled] == [False, True]
    row = few.step(x, torch.full_like(c, torch.nan))
    assert all(loss.isfinite() for loss in row.values())
    assert all(p.isfinite().all() for net in few.networks.values() for p in net.parameters())
    # Labels missing where they are due do not pass unnoticed.
    assert few.step(x, torch.full_like(c, torch.nan))["D_cls"].isnan()


def test_a_run_resumed_before_a_batch_without_labels_goes_on_exactly(tmp_path):
    """The heads that have no loss then are moved on by the momentum that the checkpoint holds."""
    models = [MatchGAN(MatchGANConfig(**TINY, labelled_percentage=10, n_critic=1))]
    x, c = batch(torch.float32)
    models[0].step(x, c)
    models.append(resumed(models[0], tmp_path / "checkpoint.pt"))
    head = models[0].D.conv3.weight.clone()
    rows = [model.step(x, torch.full_like(c, torch.nan)) for model in models]
    assert rows[0] == rows[1] and not torch.equal(models[0].D.conv3.weight, head)
    torch.testing.assert_close(*map(state, models), atol=0, rtol=0)


def test_a_step_changes_what_it_should_in_low_precision_too():
    model = MatchGAN(MatchGANConfig(**TINY, n_critic=2, precision="bfloat16"))
    before = state(model)
    model.step(*batch(torch.float32))
    assert changed(model, before) == {"D"}
    row = model.step(*batch(torch.float32))
    assert changed(model, before) == {"D", "G"}
    assert row["D_match"].dtype == row["G_match"].dtype == torch.float32
    assert float(row["D_match"]) == pytest.approx(0.69, abs=0.05)  # log 2: it knows nothing yet


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8}, "batch_size must be 16, 4 classes of 4 images, got 8"),
        ({"labelled_percentage": 10, "n_critic": 2}, "n_critic must be odd, for every other batch has labels, got 2"),
        ({"labelled_percentage": 0}, "labelled_percentage must be above 0 and at most 100, got 0"),
        ({"exclusive": ("A+B+C",), "selected_attrs": ("A", "B")}, "selected_attrs must be names with 4 or more labels"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        MatchGANConfig(**TINY | options)
