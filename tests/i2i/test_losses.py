"""Losses against the published figures, and against slower ways to say the same."""

import golden_values as golden
import pytest
import torch
import torch.nn.functional as F

from i2i.losses import GAN_MODES, GANLoss, patch_nce_loss


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("mode", GAN_MODES)
def test_gan_loss_is_the_published_one(mode, real):
    wanted = torch.from_numpy(golden.load("cut_ganloss")[f"{mode}_{real}"])
    # one mean over 72 numbers of order 1 in float32: a few units in the last place
    torch.testing.assert_close(GANLoss(mode)(golden.normal("pred", (2, 1, 6, 6)), real), wanted, atol=0, rtol=1e-6)


def test_gan_loss_in_float64():
    scores = golden.wave((2, 1, 6, 6))
    table = {"lsgan": (0.0674879021, 0.6483828516), "vanilla": (0.3766211647, 1.1670686394)}
    table |= {"nonsaturating": table["vanilla"], "wgangp": (-0.7904474747, 0.7904474747)}
    for mode, (real, fake) in table.items():
        assert float(GANLoss(mode)(scores, True).mean()) == pytest.approx(real, abs=1e-10)
        assert float(GANLoss(mode)(scores, False).mean()) == pytest.approx(fake, abs=1e-10)


def test_unknown_gan_mode():
    with pytest.raises(ValueError, match="lsgan.*'lsgann'"):
        GANLoss("lsgann")


@pytest.mark.parametrize("name", ["patchnce_b1", "patchnce_b4", "patchnce_b4_all"])
def test_patch_nce_is_the_published_one(name):
    wanted = golden.load(name)
    b, p = int(wanted["batch"]), int(wanted["patches"])
    q = F.normalize(golden.normal("q", (b * p, 256)))
    k = F.normalize(golden.normal("k", (b * p, 256)) + 8 * q)
    q = q.view(b, p, 256).requires_grad_()
    k = k.view(b, p, 256).requires_grad_()
    loss = patch_nce_loss(q, k, 0.07, bool(wanted["all_negatives"]))
    loss.mean().backward()
    # logits are cosines / 0.07, so a rounding of 6e-8 in a dot product grows 14 times
    torch.testing.assert_close(loss.detach(), torch.from_numpy(wanted["loss"]), atol=5e-6, rtol=0)
    gradient = torch.from_numpy(wanted["grad_q"])
    torch.testing.assert_close(q.grad.flatten(0, 1), gradient, atol=1e-5 * float(gradient.abs().max()), rtol=0)
    assert k.grad is None


@pytest.mark.parametrize("all_negatives", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_patch_nce_closed_form(temperature, all_negatives):
    q, k = (F.normalize(golden.wave((2, 32, 16), phase), dim=-1) for phase in (0.1, 0.9))
    got = patch_nce_loss(q, k, temperature, all_negatives)
    if all_negatives:
        q, k = q.view(1, 64, 16), k.view(1, 64, 16)
    s = q @ k.transpose(1, 2) / temperature
    filled = torch.full_like(
        s[..., :1], -10 / temperature
    )  # the published stand-in for the positive among the negatives
    want = torch.cat([s, filled], -1).logsumexp(-1) - s.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(got, want.flatten(), atol=1e-10, rtol=0)


def test_patch_nce_table():
    """Closed-form rows of the published code in float64 (10 digits)."""
    rows = [golden.wave((64, 16), phase) for phase in (0.1, 0.9)]
    q, k = ((x / (x.norm(dim=-1, keepdim=True) + 1e-7)).view(2, 32, 16) for x in rows)
    figures = [587.3618745, 13344.12292, 2.662359277, 2.667153883, 2.67584531]
    assert golden.summary(patch_nce_loss(q, k)) == pytest.approx(figures, rel=1e-8)
    figures = [631.0491506, 14162.83515, 3.337938006, 3.365954829, 3.373119151]
    assert golden.summary(patch_nce_loss(q, k, all_negatives=True)) == pytest.approx(figures, rel=1e-8)
