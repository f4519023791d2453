"""CUT: contrastive learning for unpaired image-to-image translation (Park, Efros, Zhang, Zhu; ECCV 2020)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import kernels
from i2i.config import Config
from i2i.losses import GANLoss
from i2i.networks import NCE_LAYERS, PatchDiscriminator, PatchFeatureNetwork, ResnetGenerator, init_weights


class CUT:
    """G translates domain A to B, D tells real from translated, F projects G's features for the contrastive loss."""

    def __init__(self, config: Config, device: torch.device | str = "cpu", impl: str = "auto"):
        self.config = config
        self.impl = impl
        # Built and initialised on the CPU, so that a seed gives the same weights on every device.
        torch.manual_seed(config.seed)
        self.patch_rng = torch.Generator().manual_seed(config.seed)
        self.G = init_weights(ResnetGenerator(ngf=config.ngf, n_blocks=config.n_blocks, impl=impl)).to(device)
        self.D = init_weights(PatchDiscriminator(ndf=config.ndf, impl=impl)).to(device)
        self.F = init_weights(PatchFeatureNetwork(self.G.tap_channels(NCE_LAYERS), impl=impl)).to(device)
        self.gan = GANLoss(config.gan_mode)
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=config.lr, betas=(config.beta1, 0.999))
            for name, net in self.networks.items()
        }

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by the letters of the published checkpoint files."""
        return {"G": self.G, "D": self.D, "F": self.F}

    def step(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        """One update of D, then one of G and F, on images (N, 3, H, W) in [-1, 1]. Returns the losses, detached."""
        n, config = len(real_a), self.config
        # The identity half (B through G) rides in the same batch.
        output = self.G(torch.cat([real_a, real_b]) if config.nce_idt else real_a)
        fake_b, idt_b = output[:n], output[n:]

        d_real, d_fake = self.discriminator_loss(real_b, fake_b.detach())
        self._update(["D"], 0.5 * (d_real + d_fake))

        self.D.requires_grad_(False)
        g_gan = self.gan(self.D(fake_b), True).mean()
        nce = self.nce_loss(real_a, fake_b)
        losses = {"G_GAN": g_gan, "D_real": d_real, "D_fake": d_fake, "NCE": nce}
        if config.nce_idt:
            losses["NCE_Y"] = self.nce_loss(real_b, idt_b)
            nce = 0.5 * (nce + losses["NCE_Y"])
        losses["G"] = g_gan + nce
        self._update(["G", "F"], losses["G"])
        self.D.requires_grad_(True)
        return {name: loss.detach() for name, loss in losses.items()}

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """(loss on real images, loss on translated ones), two scalars."""
        return self.gan(self.D(real), True).mean(), self.gan(self.D(fake), False).mean()

    def nce_loss(self, source: Tensor, translated: Tensor) -> Tensor:
        """What lies at a place in `translated` must resemble what lay there in `source`, more than the source's other
        places do. Scalar: lambda_nce * PatchNCE, mean over places, then over the tapped layers."""
        with torch.no_grad():  # the keys get no gradient (see kernels.patch_nce_loss), so their graph need not exist
            maps = self.G(source, NCE_LAYERS, encode_only=True)
            keys, ids = kernels.sample_patches(maps, self.config.num_patches, generator=self.patch_rng, impl=self.impl)
            keys = self.F.project(keys)
        queries = self.F.project(self.G(translated, NCE_LAYERS, encode_only=True, ids=ids))
        return self.config.lambda_nce * kernels.patch_nce_loss(
            queries, keys, temperature=self.config.temperature, normalize=True, impl=self.impl
        )

    def _update(self, names: Iterable[str], loss: Tensor) -> None:
        for name in names:
            self.optimizers[name].zero_grad()
        loss.backward()
        for name in names:
            self.optimizers[name].step()

    def set_lr_factor(self, factor: float) -> None:
        """Learning rate of all optimisers := config.lr * factor."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * factor

    @torch.no_grad()
    def translate(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) of domain A -> the same of domain B, without gradients."""
        self.G.eval()
        output = self.G(images)
        self.G.train()
        return output
