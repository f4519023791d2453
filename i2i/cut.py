"""CUT: contrastive learning for unpaired image-to-image translation (Park, Efros, Zhang, Zhu; ECCV 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import kernels
from i2i.config import Config
from i2i.losses import GANLoss
from i2i.networks import NCE_LAYERS, PatchDiscriminator, PatchFeatureNetwork, ResnetGenerator, init_weights

Keys = tuple[list[Tensor], list[Tensor]]  # of the contrastive loss, for each tapped layer: rows, positions


class CUT:
    """G translates domain A to B, D tells real from translated, F projects G's features for the contrastive loss."""

    def __init__(self, config: Config, device: torch.device | str = "cpu", impl: str = "auto"):
        self.config = config
        self.device = torch.device(device)
        self.impl = impl
        # Built and initialised on the CPU, so that a seed gives the same weights on every device.
        torch.manual_seed(config.seed)
        self.patch_rng = torch.Generator().manual_seed(config.seed)
        self.G = init_weights(ResnetGenerator(ngf=config.ngf, n_blocks=config.n_blocks, impl=impl))
        self.D = init_weights(PatchDiscriminator(ndf=config.ndf, impl=impl))
        self.F = init_weights(PatchFeatureNetwork(self.G.tap_channels(NCE_LAYERS), impl=impl))
        for net in (self.G, self.D, self.F):  # weights channels last: convolutions take and return maps so
            net.to(device, memory_format=torch.channels_last)
        self.gan = GANLoss(config.gan_mode)
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=config.lr, betas=(config.beta1, 0.999), fused=True)
            for name, net in self.networks.items()
        }

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by the letters of the published checkpoint files."""
        return {"G": self.G, "D": self.D, "F": self.F}

    def step(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        """One update of D, then one of G and F, on images (N, 3, H, W) in [-1, 1]. Returns the losses, detached."""
        config = self.config
        # Maps are channels last from here to the gradients.
        real_a, real_b = (images.contiguous(memory_format=torch.channels_last) for images in (real_a, real_b))
        # The identity half (B through G) rides in the same batch.
        sources = [real_a, real_b] if config.nce_idt else [real_a]
        with self._autocast():
            output, keys = self.translate_and_sample(torch.cat(sources), len(sources))
        # The losses go back one by one, each freeing its graph, as far as these copies of the output; what gathers
        # there then goes on through the generator. The same gradients, with one encoder's graph in memory at a time.
        translated = [images.detach().requires_grad_() for images in output.chunk(len(sources))]
        fake_b = translated[0]

        with self._autocast():
            d_real, d_fake = self.discriminator_loss(real_b, fake_b.detach())
        self.optimizers["D"].zero_grad()
        (0.5 * (d_real + d_fake)).backward()
        self.optimizers["D"].step()

        for name in ("G", "F"):
            self.optimizers[name].zero_grad()
        self.D.requires_grad_(False)
        with self._autocast():
            g_gan = self.gan(self.D(fake_b).float(), True).mean()
        g_gan.backward()
        self.D.requires_grad_(True)
        nce = []
        for given in zip(keys, translated, strict=True):
            with self._autocast():
                nce.append(self.nce_loss(*given))
            (nce[-1] / len(keys)).backward()
        output.backward(torch.cat([images.grad for images in translated]))
        for name in ("G", "F"):
            self.optimizers[name].step()

        losses = {"G_GAN": g_gan, "D_real": d_real, "D_fake": d_fake, "NCE": nce[0]}
        if config.nce_idt:
            losses["NCE_Y"] = nce[1]
        losses = {name: loss.detach() for name, loss in losses.items()}
        return losses | {"G": losses["G_GAN"] + sum(loss.detach() for loss in nce) / len(nce)}

    def _autocast(self) -> torch.autocast:
        """Several in a step: within one, autocast would go on with its copies of weights from before an update."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def translate_and_sample(self, images: Tensor, groups: int) -> tuple[Tensor, list[Keys]]:
        """G's output for `images`, and the keys of each of their `groups`: patches of the maps on the way there.

        The published code encodes its sources once more for them, with the same weights: the same features, up to
        rounding where convolutions differ with the size of the batch.
        """
        if self.config.published_order:
            output = self.G(images)
            with torch.no_grad():
                maps = [self.G(source, NCE_LAYERS, encode_only=True) for source in images.chunk(groups)]
        else:
            output, maps = self.G(images, NCE_LAYERS)
            maps = zip(*(layer.detach().chunk(groups) for layer in maps))
        return output, [self.sample_keys(layers) for layers in maps]

    @torch.no_grad()  # keys get no gradient (see kernels.patch_nce_loss), so their graph need not exist
    def sample_keys(self, maps: Sequence[Tensor]) -> Keys:
        """(patches projected, the positions they were drawn at) of the maps at NCE_LAYERS."""
        patches, ids = kernels.sample_patches(maps, self.config.num_patches, generator=self.patch_rng, impl=self.impl)
        return self.F.project(patches), ids

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """(loss on real images, loss on translated ones), two scalars."""
        return self.gan(self.D(real).float(), True).mean(), self.gan(self.D(fake).float(), False).mean()

    def nce_loss(self, keys: Keys, translated: Tensor) -> Tensor:
        """What lies at a place in `translated` must resemble what lay there in the source of the keys, more than the
        source's other places do. Scalar: lambda_nce * PatchNCE, mean over places, then over the tapped layers."""
        rows, ids = keys
        queries = self.F.project(self.G(translated, NCE_LAYERS, encode_only=True, ids=ids))
        return self.config.lambda_nce * kernels.patch_nce_loss(
            queries, rows, temperature=self.config.temperature, normalize=True, impl=self.impl
        )

    def set_lr_factor(self, factor: float) -> None:
        """Learning rate of all optimisers := config.lr * factor."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.lr * factor

    @torch.no_grad()
    def translate(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) of domain A -> the same of domain B, without gradients."""
        self.G.eval()
        with self._autocast():
            output = self.G(images.contiguous(memory_format=torch.channels_last))
        self.G.train()
        return output.float()
