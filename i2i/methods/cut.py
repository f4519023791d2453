"""CUT: contrastive learning for unpaired image-to-image translation (Park, Efros, Zhang, Zhu; ECCV 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from i2i import distributed
from i2i.config import setting
from i2i.errors import UsageError
from i2i.graphs import Draws, Losses
from i2i.methods.averages import Average
from i2i.methods.base import Method, frozen
from i2i.methods.contrast import ContrastConfig, contrastive_loss
from i2i.methods.losses import GANLoss, discriminator_loss, draw_share, gradient_penalty, total
from i2i.methods.negatives import ExternalNegatives, gathered
from i2i.networks import (
    NCE_LAYERS,
    SampledFeatures,
    TappedGenerator,
    discriminator,
    feature_network,
    generator,
    init_weights,
)
from i2i.networks.patch_features import Ids
from kernels._dtypes import wide

Rows = list[Tensor]  # of the contrastive loss, for each tapped layer


@dataclass
class CUTConfig(ContrastConfig):
    """The settings of the paper and its code, but for those of the contrastive loss itself (ContrastConfig)."""

    generator: str = setting("resnet_9blocks", "resnet_<n>blocks or stylegan2 (published: netG)")
    init_type: str = "xavier"
    antialias: bool = setting(
        True, "blur before the generator and the discriminator halve a map (published: no_antialias)"
    )
    antialias_up: bool = setting(True, "blur where the generator doubles a map (published: no_antialias_up)")
    lambda_gan: float = setting(1.0, "weight of the generator's GAN loss")
    nce_idt: bool = setting(True, "translate B, too, and contrast the result with B itself")
    nce_layers: tuple[int, ...] = setting(NCE_LAYERS, "layers of the generator whose features are contrasted")
    feature_network: str = setting("mlp_sample", "network F: mlp_sample, sample or reshape (published: netF)")
    feature_width: int = setting(256, "length of the feature vectors that mlp_sample makes (published: netF_nc)")
    num_patches: int = setting(256, "patches sampled from each of nce_layers per image")
    flip_equivariance: bool = setting(
        False, "mirror the images in half of the steps, and compare with the features of the unmirrored"
    )
    published_order: bool = setting(
        False, "encode the sources of the contrastive loss again, as published, instead of keeping their patches"
    )

    # ema: a run whose weights scored 22.6 dB after 600 steps had 12.4 after 1000; averages with decay 0.99, 0.995 and
    # 0.998 then scored 14.5, 17.7 and 21.5.
    SAMPLE: ClassVar[dict[str, Any]] = ContrastConfig.SAMPLE | {"num_patches": 64, "ema": 0.998}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "feature_width", "num_patches")
        self.at_least(0, "lambda_gan")
        self.one_of("feature_network", ("mlp_sample", "sample", "reshape"))
        self.require(
            self.generator.startswith(("resnet_", "stylegan2")),
            "generator",
            "a resnet or stylegan2 (the contrastive loss looks into its layers, which a U-Net does not show)",
        )
        self.require(self.crop_size >= 32 and self.crop_size % 4 == 0, "crop_size", "a multiple of 4, at least 32")
        if self.discriminator == "stylegan2":
            power = self.crop_size & (self.crop_size - 1) == 0
            self.require(power, "crop_size", "a power of two with discriminator=stylegan2, which judges one size")
        if self.lambda_nce > 0:
            self.check_contrast()

    def check_image(self, width: int, height: int) -> None:
        super().check_image(width, height)
        places = (width // 4) * (height // 4)  # of the smallest tapped maps
        if self.lambda_nce > 0 and self.feature_network != "reshape" and self.num_patches > places:
            raise UsageError(
                f"too small for num_patches={self.num_patches}: there are {places}, a sixteenth of the pixels"
            )

    @property
    def translates_b(self) -> bool:
        """Whether G sees B too, for the contrastive identity loss."""
        return self.nce_idt and self.lambda_nce > 0

    def check_contrast(self) -> None:
        self.require(
            self.input_nc == self.output_nc, "output_nc", f"input_nc ({self.input_nc}): the encoder reads both domains"
        )
        if self.feature_network != "reshape":  # which always gives 16 rows
            places = (self.crop_size // 4) ** 2  # of the smallest tapped maps
            self.require(self.num_patches <= places, "num_patches", f"at most {places}, (crop_size / 4) squared")
            alone = self.num_patches * (self.batch_size if self.negatives == "minibatch" else 1) == 1
            self.require(
                self.negatives == "external" or not alone, "num_patches", "2 or more: the others are the negatives"
            )
        self.check_variant(self.feature_network)


class CUT(Method):
    """G translates domain A to B, D tells real from translated, F projects G's features for the contrastive loss."""

    name = "cut"
    title = "unpaired, by contrast between patches (Park et al., ECCV 2020)"
    Config = CUTConfig
    full_view_in_decay = True

    config: CUTConfig
    G: TappedGenerator
    D: nn.Module
    F: SampledFeatures
    outline: TappedGenerator  # G with a channel or two, on the CPU, for the sizes of its maps

    def __init__(self, config: CUTConfig, device: torch.device | str = "cpu", impl: str = "auto"):
        super().__init__(config, device, impl)
        # Flips, places of patches, mixtures of the gradient penalty.
        self.rngs["step"] = torch.Generator().manual_seed(config.seed)
        self.known_sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.external: ExternalNegatives | None = None
        if config.lambda_nce and config.negatives == "external":
            shape = len(config.nce_layers), config.queue_size, config.feature_width
            self.external = ExternalNegatives(self.G, self.F, 1 + config.nce_idt, shape, self.rngs["step"], self.device)

    def build(self) -> dict[str, nn.Module]:
        config = self.config
        self.gan = GANLoss(config.gan_mode)
        size = min(config.load_size, config.crop_size)
        networks: dict[str, nn.Module] = {
            "G": self.build_generator(config.ngf, self.impl),
            "D": discriminator(
                config.discriminator,
                config.output_nc,
                config.ndf,
                n_layers=config.n_layers_d,
                norm=config.norm,
                antialias=config.antialias,
                size=size,
                impl=self.impl,
            ),
        }
        if config.lambda_nce:
            with torch.random.fork_rng([]):  # its weights are nobody's
                self.outline = self.build_generator(1, "reference").eval()
            try:
                channels = cast(TappedGenerator, networks["G"]).tap_channels(config.nce_layers)
            except ValueError as error:
                raise UsageError(f"nce_layers: {error}") from None
            networks["F"] = feature_network(config.feature_network, channels, config.feature_width, impl=self.impl)
        return {name: init_weights(net, config.init_type, config.init_gain) for name, net in networks.items()}

    def build_generator(self, ngf: int, impl: str) -> TappedGenerator:
        config = self.config
        net = generator(
            config.generator,
            config.input_nc,
            config.output_nc,
            ngf,
            norm=config.norm,
            dropout=config.dropout,
            antialias_down=config.antialias,
            antialias_up=config.antialias_up,
            size=min(config.load_size, config.crop_size),
            impl=impl,
        )
        return cast(TappedGenerator, net)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: self.adam(name) for name, net in self.networks.items() if list(net.parameters())}

    def draw(self, *batch: Tensor) -> Draws:
        """Whether to mirror; positions in the maps of each source; places in the queues; shares of the penalty."""
        config, rng = self.config, self.rngs["step"]
        flipped = config.flip_equivariance and float(torch.rand((), generator=rng)) < 0.5
        drawn: dict[str, Any] = {}
        if config.lambda_nce:
            sources = batch[: 1 + config.translates_b]
            sizes = [self.tap_sizes(*source.shape[2:]) for source in sources]
            keys = [self.F.draw(layers, config.num_patches, rng) for layers in sizes]
            drawn["keys"] = drawn["queries"] = keys
            if flipped:
                drawn["queries"] = [mirrored(*each) for each in zip(keys, sizes, strict=True)]
        if self.external:
            rows = len(batch[0]) * config.num_patches * distributed.world()
            drawn["places"] = [queue.claim(rows) for queue in self.external.queues]
        if config.gan_mode == "wgangp":
            drawn["share"] = draw_share(len(batch[1]), rng)
        return Draws(("mirrored",) if flipped else (), drawn)

    def tap_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of the contrasted maps of such an image."""
        if (height, width) not in self.known_sizes:
            with torch.random.fork_rng([]):  # some layers draw noise
                self.known_sizes[height, width] = self.outline.tap_sizes(self.config.nce_layers, height, width)
        return self.known_sizes[height, width]

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """One update of D, then one of G and F, on images (N, C, H, W) in [-1, 1] of both domains."""
        config, flipped, drawn = self.config, "mirrored" in draws.variant, draws.tensors
        real_a, real_b = (images.contiguous(memory_format=self.form) for images in batch)
        # The identity half (B through G) rides in the same batch, if its images have the size of A's.
        sources = [real_a, real_b] if config.translates_b else [real_a]
        passes = [torch.cat(sources)] if real_a.shape == real_b.shape else sources
        if self.external:
            self.external.follow(self.G, self.F)
        outputs, keys = [], []
        for images in passes:
            places = drawn["keys"][len(keys) :] if config.lambda_nce else []
            with self.autocast():
                output, given = self.translate_and_sample(images, len(images) // len(real_a), flipped, places)
            outputs.append(output)
            keys += given
        # The losses go back one by one, each freeing its graph, as far as these copies of the output; what gathers
        # there then goes on through the generator. The same gradients, with one encoder's graph in memory at a time.
        halves = [half for output in outputs for half in output.split(len(real_a))]
        translated = [images.detach().requires_grad_() for images in halves]

        self.zero_grad("D")
        losses = self.backward_discriminator(real_b, translated[0].detach(), drawn.get("share"))
        self.update("D")

        others = [name for name in self.optimizers if name != "D"]
        self.zero_grad(*others)
        losses |= self.backward_generator(translated, keys, real_b, drawn)
        gradients = [images.grad for images in translated]
        gradients = gradients if len(outputs) == len(gradients) else [torch.cat(gradients)]
        self.go_back(outputs, gradients, last=["G"])
        self.update(*others)
        return losses

    def translate_and_sample(
        self, images: Tensor, groups: int, flipped: bool, places: Sequence[Ids]
    ) -> tuple[Tensor, list[Rows]]:
        """G's output for `images`, or for their mirror images; and the keys of each of the `groups` of `images`, at its
        `places`.

        The published code encodes its sources once more for the keys, with the same weights: the same features, up to
        rounding where convolutions differ with the size of the batch. Patches of the maps on the way to the output
        spare that. They are not the same for mirrored images (of an even number of columns, halving takes the other
        ones), with batch norm (statistics of both halves), with dropout (the masks of the translation itself), or from
        another encoder.
        """
        config = self.config
        if not config.lambda_nce:
            return self.G(images.flip(-1) if flipped else images), []
        once_more = config.published_order or flipped or config.norm == "batch" or config.dropout or self.external
        if not once_more:
            output, maps = self.G(images, config.nce_layers)
            halves = zip(*(layer.detach().chunk(groups) for layer in maps))
            return output, [self.sample_keys(layers, self.F, flipped, at) for layers, at in zip(halves, places)]
        output = self.G(images.flip(-1) if flipped else images)
        encoder, projection = self.G, self.F
        if self.external:
            encoder, projection = self.external.encoder, self.external.projection
        with torch.no_grad():
            halves = [encoder(source, config.nce_layers, encode_only=True) for source in images.chunk(groups)]
        return output, [self.sample_keys(layers, projection, flipped, at) for layers, at in zip(halves, places)]

    @torch.no_grad()  # keys get no gradient (see kernels.patch_nce_loss), so their graph need not exist
    def sample_keys(self, maps: Sequence[Tensor], projection: SampledFeatures, flipped: bool, places: Ids) -> Rows:
        """Rows of a source's `maps` at these places; whole maps are mirrored where the translation will be."""
        patches, _ = projection.sample(maps, ids=places)
        if flipped and places is None:
            patches = [layer.flip(-1) for layer in patches]
        return self.project(projection, patches)

    def project(self, projection: SampledFeatures, features: list[Tensor]) -> Rows:
        """Rows of a network such as F. In float32 where the rest is float16: the loss divides rows by their norms, 1e-5
        at first, so gradients on their way into the MLPs grow 1e5 times, out of float16's range."""
        if self.config.precision != "float16":
            return projection.project(features)
        with self.full_precision():
            return projection.project([wide(x) for x in features])

    def backward_discriminator(
        self, real: Tensor, fake: Tensor, share: Tensor | None, last: Sequence[str] = ("D",)
    ) -> Losses:
        """Leaves the gradients of D's losses in D. Returns those losses, detached. `last`: see `backward`."""
        with self.autocast():
            losses = discriminator_loss(self.gan, self.D, real, fake)
        if share is not None:
            losses["D_GP"] = gradient_penalty(self.D, real, fake, share=share)
        self.backward(0.5 * total(losses.values()), last=last)
        return {name: loss.detach() for name, loss in losses.items()}

    def backward_generator(
        self, translated: Sequence[Tensor], keys: Sequence[Rows], real_b: Tensor, drawn: dict[str, Any]
    ) -> Losses:
        """Leaves the gradients of G's losses in the `translated` images and in G and F. Returns those losses, detached,
        and G, their weighted sum."""
        with frozen(self.D):
            with self.autocast():
                g_gan = self.gan.for_generator(self.D(translated[0]))
            self.backward(self.config.lambda_gan * g_gan)
        losses = {"G_GAN": g_gan.detach()}
        total = self.config.lambda_gan * losses["G_GAN"]
        for source, (name, rows) in enumerate(zip(("NCE", "NCE_Y"), keys)):
            queue = self.external.queues[source] if self.external else None
            with self.autocast():
                loss = self.nce_loss(
                    rows, drawn["queries"][source], translated[source], None if queue is None else queue.rows
                )
            self.backward(loss / len(keys), last=["F"] if source == len(keys) - 1 else [])
            if queue is not None:
                new = self.graphs.outside(gathered, rows) if distributed.world() > 1 else gathered(rows)
                queue.push(new, drawn["places"][source])
            losses[name] = loss.detach()
            total = total + losses[name] / len(keys)
        return losses | {"G": total}

    def nce_loss(self, rows: Rows, places: Ids, translated: Tensor, bank: Tensor | None = None) -> Tensor:
        """What lies at a place in `translated` must resemble what lay there in the source of the keys, `rows`, more
        than the source's other places do, or more than the `bank`, rows of negatives for each layer, does."""
        queries = self.project(self.F, self.G(translated, self.config.nce_layers, encode_only=True, ids=places))
        # Inside autocast some features come as float32, others not; a loss of several layers takes one dtype.
        queries, rows = [wide(x) for x in queries], [wide(x) for x in rows]
        return contrastive_loss(self.config, queries, rows, bank, self.impl)

    def all_averages(self) -> list[Average]:
        return super().all_averages() + (self.external.averages if self.external else [])

    def extra_state(self) -> dict[str, Any]:
        return {"external": self.external.state()} if self.external else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self.external:
            self.external.load_state(state["external"])

    def visuals(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        columns = {"real_A": real_a, "fake_B": self.translate(real_a), "real_B": real_b}
        return columns | ({"idt_B": self.translate(real_b)} if self.config.translates_b else {})


def mirrored(places: Ids, sizes: Sequence[tuple[int, int]]) -> Ids:
    """Where flat positions in maps of so many rows and columns lie once the maps are mirrored."""
    if places is None:
        return None
    return [ids + (width - 1) - 2 * (ids % width) for ids, (_, width) in zip(places, sizes, strict=True)]
