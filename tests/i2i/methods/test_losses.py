"""Losses against the published figures, and against slower ways to say the same."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from torch import Tensor, nn

from i2i.errors import UsageError
from i2i.methods.losses import GAN_MODES, GANLoss, discriminator_loss, draw_share, gradient_penalty, l1_loss
from i2i.networks import PatchDiscriminator
from kernels._layout import is_channels_last

PUBLISHED = ("lsgan", "vanilla", "nonsaturating", "wgangp")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("mode", PUBLISHED)
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
        assert float(GANLoss(mode).for_generator(scores)) == pytest.approx(real, abs=1e-10)


def test_hinge():
    """Beyond 1 (real) and -1 (fake) the discriminator has done enough; the generator never has."""
    scores = torch.tensor([-3.0, -0.5, 0.0, 4.0], dtype=torch.float64).view(2, 1, 1, 2)
    hinge = GANLoss("hinge")
    assert float(hinge(scores, True)) == (4 + 1.5 + 1 + 0) / 4
    assert float(hinge(scores, False)) == (0 + 0.5 + 1 + 5) / 4
    assert float(hinge.for_generator(scores)) == -(-3 - 0.5 + 0 + 4) / 4


@pytest.mark.parametrize("mode", GAN_MODES)
def test_scores_of_half_precision_are_judged_in_float32(mode):
    scores = golden.wave((2, 1, 6, 6)).bfloat16()
    gan = GANLoss(mode)
    for loss, wide in ((gan(scores, False), gan(scores.float(), False)), (gan.for_generator(scores), None)):
        assert loss.dtype == torch.float32
        assert wide is None or torch.equal(loss, wide)


def test_unknown_gan_mode():
    with pytest.raises(UsageError, match="lsgan.*'lsgann'"):
        GANLoss("lsgann")


class Quadratic(nn.Module):
    """Scores whose gradient with respect to an image x is the weight times 2 x."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.square()


@pytest.mark.parametrize("kind", ["real", "fake", "mixed"])
def test_gradient_penalty_and_its_gradient_by_hand(kind):
    """penalty = w mean_n (|2 a x_n| - c)^2, so d/da = w mean_n 2 (|2 a x_n| - c) |2 x_n|."""
    real, fake = golden.wave((3, 2, 4, 4)), golden.wave((3, 2, 4, 4), phase=1.7)
    share = torch.rand(3, 1, 1, 1, generator=rng())  # the published draw: one number per pair, float32
    x = {"real": real, "fake": fake, "mixed": share * real + (1 - share) * fake}[kind]
    slope = 2 * x.flatten(1).norm(dim=1)
    discriminator = Quadratic(0.3)
    penalty = gradient_penalty(discriminator, real, fake, kind, constant=0.8, weight=7.0, share=share)
    torch.testing.assert_close(penalty, 7 * (0.3 * slope - 0.8).square().mean(), rtol=1e-12, atol=0)
    penalty.backward()
    wanted = 7 * (2 * (0.3 * slope - 0.8) * slope).mean()
    torch.testing.assert_close(discriminator.weight.grad, wanted, rtol=1e-12, atol=0)


def test_gradient_penalty_of_a_flat_discriminator_has_a_gradient():
    """The norm of a zero gradient has no derivative; that must not make the weights nan."""
    discriminator = Quadratic(0.0)
    images = golden.wave((2, 2, 4, 4))
    penalty = gradient_penalty(discriminator, images, images, share=draw_share(2, rng()))
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(10, rel=1e-10) and torch.isfinite(discriminator.weight.grad)


def plain(discriminator: PatchDiscriminator, x: Tensor) -> Tensor:
    """The discriminator without antialias, with torch's own operators."""
    for layer in discriminator.model:
        if isinstance(layer, nn.InstanceNorm2d):
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
            x = F.leaky_relu((x - mean) / (variance + 1e-5).sqrt(), 0.2)
        else:
            x = F.leaky_relu(x, 0.2) if isinstance(layer, nn.LeakyReLU) else layer(x)
    return x


def test_gradient_penalty_through_the_fused_operators():
    """Second derivatives with respect to every weight of a PatchGAN, against plain torch in float64."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, 4, n_layers=2, antialias=False).double()
    real, fake = golden.wave((2, 3, 32, 32)), golden.wave((2, 3, 32, 32), phase=1.7)
    weights = list(discriminator.parameters())
    results = []
    for judge in (discriminator, lambda x: plain(discriminator, x)):
        penalty = gradient_penalty(judge, real, fake, share=draw_share(2, rng()))
        results.append([penalty, *torch.autograd.grad(penalty, weights, allow_unused=True, materialize_grads=True)])
    assert float(results[1][1].norm()) > 1e-3  # something to compare
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-12)


def test_gradient_penalty_is_in_float32_inside_autocast():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, 4, n_layers=2)
    real, fake = golden.image("real", (1, 3, 32, 32)), golden.image("fake", (1, 3, 32, 32))
    wanted = gradient_penalty(discriminator, real, fake, share=draw_share(len(real), rng()))
    with torch.autocast("cpu", torch.bfloat16):
        penalty = gradient_penalty(discriminator, real, fake, share=draw_share(len(real), rng()))
    assert penalty.dtype == torch.float32 and torch.equal(penalty, wanted)


def test_gradient_penalty_refuses():
    a, b = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 12)
    with pytest.raises(UsageError, match=r"one size, got \(1, 3, 8, 8\) and \(1, 3, 8, 12\)"):
        gradient_penalty(Quadratic(1.0), a, b, share=draw_share(1, rng()))
    with pytest.raises(UsageError, match="kind must be one of real, fake, mixed, got 'mix'"):
        gradient_penalty(Quadratic(1.0), a, a, "mix")
    with pytest.raises(ValueError, match="share: got None, want what draw_share gives"):
        gradient_penalty(Quadratic(1.0), a, a)


@pytest.mark.parametrize("mode", GAN_MODES)
def test_discriminator_loss(mode):
    real, fake = golden.wave((2, 3, 4, 4)), golden.wave((2, 3, 4, 4), phase=1.7)
    gan, discriminator = GANLoss(mode), Quadratic(0.3)
    wanted = {"D_real": gan(0.3 * real**2, True).mean(), "D_fake": gan(0.3 * fake**2, False).mean()}
    losses = discriminator_loss(gan, discriminator, real, fake)
    assert list(losses) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(losses[name], wanted[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_l1_loss_and_the_layout_of_its_gradient(dtype):
    x = golden.wave((2, 3, 4, 5)).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = golden.wave((2, 3, 4, 5), phase=1.7)
    loss = l1_loss(x, y)
    assert loss.dtype == torch.float64  # the wider of the two, and at least float32
    torch.testing.assert_close(loss.detach(), (x.detach().double() - y).abs().mean(), rtol=1e-12, atol=0)
    loss.backward()
    assert is_channels_last(x.grad)
    wanted = (x.detach().double() - y).sign() / x.numel()
    torch.testing.assert_close(x.grad, wanted.to(dtype), rtol=1e-12, atol=0)


def test_l1_loss_does_not_broadcast():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        l1_loss(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
