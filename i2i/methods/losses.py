"""Losses of the published systems, in plain torch: nothing that is worth fusing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i.config import GAN_MODES
from i2i.errors import UsageError
from i2i.methods.second_derivative import Differentiated
from kernels._dtypes import wide

Discriminator = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> scores (N, ...)


class GANLoss(nn.Module):
    """How far a discriminator's scores (N, 1, h, w) are from saying `real` or `fake`, in float32 or wider.

    lsgan: squared distance to 1 or 0; vanilla: cross entropy of the scores as logits; wgangp: -mean or mean (and see
    `discriminator_loss`); hinge: mean of relu(1 - scores) or relu(1 + scores) (Lim and Ye 2017; in none of the
    published repositories); each a scalar. nonsaturating: softplus, one value per sample, (N,).
    """

    def __init__(self, mode: str = "lsgan"):
        super().__init__()
        if mode not in GAN_MODES:
            raise UsageError(f"gan_mode must be one of {', '.join(GAN_MODES)}, got {mode!r}")
        self.mode = mode

    def forward(self, scores: Tensor, target_is_real: bool) -> Tensor:
        scores = wide(scores)
        if self.mode == "lsgan":
            return (scores - float(target_is_real)).square().mean()
        towards = -scores if target_is_real else scores  # falls as the scores say what they should
        if self.mode == "wgangp":
            return towards.mean()
        if self.mode == "hinge":
            return F.relu(1 + towards).mean()
        loss = F.softplus(towards)  # = cross entropy with logits, for hard labels
        return loss.mean() if self.mode == "vanilla" else loss.flatten(1).mean(1)

    def for_generator(self, scores: Tensor) -> Tensor:
        """Scalar loss of the generator whose images got these scores: they should say `real`. Hinge: -mean, without
        the bound that stops a discriminator from going further."""
        return -wide(scores).mean() if self.mode == "hinge" else self(scores, True).mean()


def discriminator_loss(gan: GANLoss, discriminator: Discriminator, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Scalars whose sum, halved, a discriminator is trained on: D_real and D_fake; with wgangp D_GP is a third, the
    `gradient_penalty`.

    One forward each for real and translated images, because with batch norm their statistics must not mix. The
    published repositories have the gradient penalty but call it nowhere: their wgangp lets the scores run away. Half
    the sum, so that fake - real + 10 penalty of Gulrajani et al. 2017 keeps its proportions.
    """
    return {"D_real": gan(discriminator(real), True).mean(), "D_fake": gan(discriminator(fake), False).mean()}


def draw_share(count: int, generator: torch.Generator) -> Tensor:
    """Shares of the real image in each of `count` mixed ones, from U[0, 1): (count, 1, 1, 1), on the CPU."""
    return torch.rand(count, 1, 1, 1, generator=generator)


def gradient_penalty(
    discriminator: Discriminator,
    real: Tensor,
    fake: Tensor,
    kind: str = "mixed",
    constant: float = 1.0,
    weight: float = 10.0,
    *,
    share: Tensor | None = None,
) -> Tensor:
    """WGAN-GP's penalty (Gulrajani et al. 2017, equation 3): weight * mean over images of (|gradient| - constant)^2.

    The gradient, of an image's scores summed with respect to the image, is taken at the `real` images, at the `fake`
    ones, or at `mixed` ones: each pair weighted by its `share` (see `draw_share`). Not for inside autocast.
    """
    places = {"real": real, "fake": fake}
    if kind == "mixed":
        if real.shape != fake.shape:
            shapes = f"{tuple(real.shape)} and {tuple(fake.shape)}"
            raise UsageError(f"the penalty of wgangp mixes real and translated images of one size, got {shapes}")
        if share is None:
            raise ValueError("share: got None, want what draw_share gives, for kind='mixed'")
        places["mixed"] = torch.lerp(wide(fake), wide(real), share.to(wide(real).dtype))
    if kind not in places:
        raise UsageError(f"kind must be one of real, fake, mixed, got {kind!r}")
    gradient = image_gradient(discriminator, places[kind])
    # The published 1e-16 keeps the norm off 0, where its derivative is not defined.
    norm = torch.linalg.vector_norm(gradient + 1e-16, dim=(1, 2, 3))
    return weight * (norm - constant).square().mean()


def image_gradient(discriminator: Discriminator, images: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of each image's scores, summed, with respect to it; itself differentiable with respect to
    the weights. Not for inside autocast: the derivative of a derivative leaves the range of float16."""
    images = wide(images.detach()).requires_grad_()
    with torch.autocast(images.device.type, enabled=False), Differentiated() as layers:
        return layers.gradient(discriminator(images).sum(), images)


def total(losses: Iterable[Tensor]) -> Tensor:
    """The sum of one or more losses."""
    first, *others = losses
    return sum(others, first)


def l1_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of two tensors of one shape, in float32 or wider."""
    if x.shape != y.shape:
        raise ValueError(f"want two tensors of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    # Not F.l1_loss or mean: their gradient is a map in NCHW whatever x is, and every map on the way to x's convolution
    # would be too. That of a sum takes the memory format of x.
    return (wide(x) - y).abs().sum() / x.numel()
