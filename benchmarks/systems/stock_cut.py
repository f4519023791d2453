"""CUT's and FastCUT's training step in stock torch, from our weights, images and patch positions: the contestants of
the whole-step table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.systems.stock import Losses, StockMethod, contestants, prepare
from benchmarks.systems.stock_bank import StockBank
from benchmarks.systems.stock_layers import Style
from benchmarks.systems.stock_networks import Discriminator, Generator, PatchFeatures
from i2i.methods.base import Method
from i2i.methods.cut import CUT, CUTConfig
from i2i.networks import NCE_LAYERS, ResnetBlock


class StockCUT(StockMethod):
    """The step of CUT and FastCUT on stock networks.

    `careful`: maps as ours, no graph for the keys, their maps kept from the first pass (unless that saw mirror
    images, or another encoder makes them), fused Adam. ValueError for a contrastive loss other than nce, or negatives
    of the minibatch.
    """

    G: Generator
    D: Discriminator
    F: PatchFeatures

    def __init__(self, config: CUTConfig, device: torch.device, style: Style):
        if config.contrast != "nce" or config.negatives == "minibatch":
            given = f"contrast={config.contrast}, negatives={config.negatives}"
            raise ValueError(f"config must have contrast=nce, negatives=image or external in stock torch, got {given}")
        ours = CUT(config)
        self.patch_rng = ours.rngs["step"]
        blocks = sum(isinstance(layer, ResnetBlock) for layer in ours.G.model)
        networks = {
            "G": Generator(style, config.input_nc, config.output_nc, config.ngf, blocks),
            "D": Discriminator(style, config.output_nc, config.ndf),
            "F": PatchFeatures(ours.G.tap_channels(NCE_LAYERS), config.feature_width),
        }
        super().__init__(config, device, style, ours, networks)
        self.optimizers = {"D": self.adam("D"), "G": self.adam("G", "F")}
        self.compile(self.G, self.D)
        self.bank = StockBank(ours.external, self.G, self.F, style) if ours.external else None

    def step(self, real_a: Tensor, real_b: Tensor) -> Losses:
        flipped = self.config.flip_equivariance and float(torch.rand((), generator=self.patch_rng)) < 0.5
        real_a, real_b = self.begin(real_a, real_b)
        sources = [real_a, real_b] if self.config.nce_idt else [real_a]
        images = torch.cat(sources)
        if self.bank:
            self.bank.follow()
        with self.autocast():
            if self.style.careful and not flipped and not self.bank:
                output, maps = self.G(images, NCE_LAYERS)
                sources = list(zip(*(layer.detach().chunk(len(sources)) for layer in maps)))
            else:
                output = self.G(images.flip(-1) if flipped else images)
        translated = output.chunk(len(sources))
        fake_b = translated[0]

        with self.autocast():
            d_real, d_fake = self.gan(self.D(real_b), True), self.gan(self.D(fake_b.detach()), False)
        self.update(self.optimizers["D"], 0.5 * (d_real + d_fake))

        self.D.requires_grad_(False)
        with self.autocast():
            g_gan = self.gan(self.D(fake_b), True)
            nce = [self._nce(i, *pair, flipped) for i, pair in enumerate(zip(sources, translated))]
        total = g_gan + sum(nce) / len(nce)
        self.update(self.optimizers["G"], total)
        self.D.requires_grad_(True)
        if self.bank:
            self.bank.push()
        losses = {"G_GAN": g_gan, "D_real": d_real, "D_fake": d_fake, "G": total}
        return losses | dict(zip(("NCE", "NCE_Y"), nce))

    def _nce(self, i: int, source: Tensor | Sequence[Tensor], translated: Tensor, flipped: bool) -> Tensor:
        """Of the i-th source. `source`: the image, or the maps made of it. `flipped`: its mirror image was
        translated."""
        encoder, projection = (self.bank.encoder, self.bank.projection) if self.bank else (self.G, self.F)
        queries = self.G(translated, NCE_LAYERS, encode_only=True)
        if flipped:
            queries = [x.flip(-1) for x in queries]
        with torch.set_grad_enabled(not self.style.careful and not self.bank):
            keys = encoder(source, NCE_LAYERS, encode_only=True) if isinstance(source, Tensor) else source
            places = [x.shape[2] * x.shape[3] for x in keys]
            ids = [torch.randperm(n, generator=self.patch_rng)[: self.config.num_patches] for n in places]
            ids = [at.to(self.device) for at in ids]
            keys = projection(keys, ids)
        rows, keys = self.F(queries, ids), [k.detach() for k in keys]
        if self.bank:
            losses = self.bank.losses(i, rows, keys, self.config.temperature)
        else:
            losses = [self._patch_nce(q, k, len(translated)) for q, k in zip(rows, keys)]
        return self.config.lambda_nce * sum(losses) / len(ids)

    def _patch_nce(self, q: Tensor, k: Tensor, count: int) -> Tensor:
        """Rows of `count` images; negatives are those of the same image."""
        positive = torch.bmm(q[:, None], k[:, :, None]).flatten(1)
        images, keys = (rows.unflatten(0, (count, -1)) for rows in (q, k))
        same = torch.eye(images.shape[1], dtype=torch.bool, device=q.device)
        negative = torch.bmm(images, keys.transpose(1, 2)).masked_fill(same, -10.0).flatten(0, 1)
        logits = torch.cat((positive, negative), 1) / self.config.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


CONTESTANTS = contestants(
    CUT,
    StockCUT,
    published="the 2020 code's operators and order of work, eager float32 NCHW",
    careful="stock operators only, bfloat16 autocast, maps as ours: norm as batch norm of each sample, no in-place "
    "ReLU, padding outside autocast, blur in float32, bilinear x2, keys without graph and kept from the first pass, "
    "fused Adam",
    compiled="blur as slices and ReLU as a maximum",
)


def contestant(
    device: str, name: str, size: int, networks: dict[str, Any]
) -> tuple[Method | StockMethod, list[Tensor], int]:
    """What child.py measures: (model, batch, steps at a time)."""
    return prepare(CONTESTANTS[name], CUTConfig, device, size, networks)
