"""Losses against the published figures, and against slower ways to say the same."""

import golden_values as golden
import pytest
import torch

from i2i.losses import GAN_MODES, GANLoss


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
