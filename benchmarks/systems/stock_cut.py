"""The contestants of the whole-step table: one CUT step each, from the same weights, images and patch positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.systems.stock_networks import Discriminator, Generator, PatchFeatures, Style
from i2i.methods.cut import CUT, CUTConfig
from i2i.networks import NCE_LAYERS, ResnetBlock

Losses = dict[str, Tensor]


class StockCUT:
    """The step of CUT and FastCUT on stock networks.

    Everything off: the published code's order of work. `careful`: channels last, no graph for the keys, their maps
    kept from the first pass (unless that saw mirror images), fused Adam.
    """

    def __init__(self, config: CUTConfig, device: torch.device, style: Style):
        ours = CUT(config)  # the same weights, and the same draws of positions
        self.config, self.style, self.device = config, style, device
        self.patch_rng = ours.rngs["step"]
        blocks = sum(isinstance(layer, ResnetBlock) for layer in ours.G.model)
        self.G = Generator(style, config.ngf, blocks)
        self.D = Discriminator(style, config.ndf)
        self.F = PatchFeatures(ours.G.tap_channels(NCE_LAYERS), config.feature_width)
        form = torch.channels_last if style.careful else torch.contiguous_format
        for mine, theirs in ((self.G, ours.G), (self.D, ours.D), (self.F, ours.F)):
            mine.load_state_dict(theirs.state_dict())
            mine.to(device, memory_format=form)
        self.form = form
        self.optimizers = [
            torch.optim.Adam(parameters, lr=config.lr, betas=(config.beta1, 0.999), fused=style.careful or None)
            for parameters in (self.D.parameters(), [*self.G.parameters(), *self.F.parameters()])
        ]
        if style.compiled:
            self.G, self.D = (torch.compile(net, dynamic=False) for net in (self.G, self.D))

    def step(self, real_a: Tensor, real_b: Tensor) -> Losses:
        flipped = self.config.flip_equivariance and float(torch.rand((), generator=self.patch_rng)) < 0.5
        real_a, real_b = (images.contiguous(memory_format=self.form) for images in (real_a, real_b))
        sources = [real_a, real_b] if self.config.nce_idt else [real_a]
        images = torch.cat(sources)
        with self._autocast():
            if self.style.careful and not flipped:
                output, maps = self.G(images, NCE_LAYERS)
                sources = list(zip(*(layer.detach().chunk(len(sources)) for layer in maps)))
            else:
                output = self.G(images.flip(-1) if flipped else images)
        translated = output.chunk(len(sources))
        fake_b = translated[0]

        with self._autocast():
            d_real, d_fake = self._gan(self.D(real_b), True), self._gan(self.D(fake_b.detach()), False)
        self._update(0, 0.5 * (d_real + d_fake))

        self.D.requires_grad_(False)
        with self._autocast():
            g_gan = self._gan(self.D(fake_b), True)
            nce = [self._nce(*pair, flipped) for pair in zip(sources, translated)]
        total = g_gan + sum(nce) / len(nce)
        self._update(1, total)
        self.D.requires_grad_(True)
        losses = {"G_GAN": g_gan, "D_real": d_real, "D_fake": d_fake, "G": total}
        return losses | dict(zip(("NCE", "NCE_Y"), nce))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @staticmethod
    def _gan(scores: Tensor, real: bool) -> Tensor:
        return F.mse_loss(scores.float(), torch.full_like(scores, float(real), dtype=torch.float32))

    def _update(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def _nce(self, source: Tensor | Sequence[Tensor], translated: Tensor, flipped: bool) -> Tensor:
        """`source`: the image, or the maps made of it. `flipped`: its mirror image was translated."""
        queries = self.G(translated, NCE_LAYERS, encode_only=True)
        if flipped:
            queries = [x.flip(-1) for x in queries]
        with torch.set_grad_enabled(not self.style.careful):
            keys = self.G(source, NCE_LAYERS, encode_only=True) if isinstance(source, Tensor) else source
            places = [x.shape[2] * x.shape[3] for x in keys]
            ids = [torch.randperm(n, generator=self.patch_rng)[: self.config.num_patches] for n in places]
            ids = [at.to(self.device) for at in ids]
            keys = self.F(keys, ids)
        rows = zip(self.F(queries, ids), keys)
        return self.config.lambda_nce * sum(self._patch_nce(q, k.detach()) for q, k in rows) / len(ids)

    def _patch_nce(self, q: Tensor, k: Tensor) -> Tensor:
        positive = torch.bmm(q[:, None], k[:, :, None]).flatten(1)
        negative = torch.mm(q, k.T).masked_fill(torch.eye(len(q), dtype=torch.bool, device=q.device), -10.0)
        logits = torch.cat((positive, negative), 1) / self.config.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"G": self.G, "D": self.D, "F": self.F}


class Variant(NamedTuple):
    """A way to run CUT's step."""

    about: str
    build: Callable[[CUTConfig, torch.device], CUT | StockCUT]
    precision: str


def _stock(**style: bool) -> Callable[[CUTConfig, torch.device], StockCUT]:
    return lambda config, device: StockCUT(config, device, Style(**style))


OURS, PUBLISHED, CAREFUL = "ours", "published form", "careful Python"
CONTESTANTS: dict[str, Variant] = {
    OURS: Variant("i2i's step on the fused operators, channels last, bfloat16 autocast", CUT, "bfloat16"),
    "ours, float32": Variant("the same without autocast", CUT, "float32"),
    PUBLISHED: Variant("the 2020 code's operators and order of work, eager float32 NCHW", _stock(), "float32"),
    "eager bfloat16": Variant("the same under bfloat16 autocast", _stock(), "bfloat16"),
    CAREFUL: Variant(
        "stock operators only, channels last, bfloat16 autocast: norm as batch norm of each sample, no in-place ReLU, "
        "padding outside autocast, blur in float32, bilinear x2, keys without graph and kept from the first pass, "
        "fused Adam",
        _stock(careful=True),
        "bfloat16",
    ),
    "torch.compile": Variant(
        "careful Python's networks through torch.compile, with blur as slices and ReLU as a maximum, which it "
        "vectorises better",
        _stock(careful=True, compiled=True),
        "bfloat16",
    ),
}


def contestant(device: str, name: str, size: int, networks: dict[str, Any]) -> tuple[CUT | StockCUT, list[Tensor], int]:
    """What child.py measures: (model, batch, steps at a time)."""
    variant, place = CONTESTANTS[name], torch.device(device)
    model = variant.build(CUTConfig(crop_size=size, precision=variant.precision, **networks), place)
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(1, 3, size, size, generator=generator) * 2 - 1 for _ in range(2)]
    return model, [image.to(place) for image in images], 1
