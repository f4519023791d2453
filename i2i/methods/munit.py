"""MUNIT: multimodal unsupervised image-to-image translation (Huang, Liu, Belongie, Kautz; ECCV 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from i2i import distributed
from i2i.config import Config, setting
from i2i.devices import move_network
from i2i.errors import UsageError
from i2i.graphs import Draws, Losses
from i2i.methods.base import Method, frozen
from i2i.methods.losses import GANLoss, l1_loss, total
from i2i.networks import init_weights
from i2i.networks.munit import MunitDiscriminator, MunitGenerator, MunitTranslator, sample_styles
from i2i.networks.vgg import Vgg16, load_vgg16, normalised_distance

GAN_MODES = {"lsgan": "lsgan", "nsgan": "vanilla"}  # published names -> GANLoss
WEIGHTS = {  # loss -> field of the configuration
    "gen_adv": "gan_w",
    "gen_recon_x": "recon_x_w",
    "gen_recon_s": "recon_s_w",
    "gen_recon_c": "recon_c_w",
    "gen_cycrecon_x": "recon_x_cyc_w",
    "gen_vgg": "vgg_w",
}
BOTH_WAYS = (("a", "b"), ("b", "a"))
ByDomain = dict[str, Tensor]  # "a" and "b"


@dataclass
class MUNITConfig(Config):
    """Defaults: the published edges2shoes. summer2winter: recon_x_cyc_w=10; synthia2cityscape: that, vgg_w=1 and
    load_size=crop_size=512."""

    preprocess: str = "scale_shortside_and_crop"
    load_size: int = 256
    lr: float = 1e-4
    weight_decay: float = setting(1e-4, "of Adam, for all weights, biases and norms included")
    steps: int = 1_000_000
    lr_policy: str = setting("linear", "left alone: step_size and gamma take its place")
    n_epochs: int = setting(1_000_000, "epochs at most; so many that steps ends the run first")
    n_epochs_decay: int = 0
    step_size: int = setting(100_000, "steps after which the learning rate is multiplied by gamma, again and again")
    gamma: float = setting(0.5, "factor of the learning rate every step_size steps")
    keep_every: int = setting(
        50,
        "epochs between weight files that later ones do not replace; a small set goes through thousands of epochs in "
        "1e6 steps",
    )
    ngf: int = setting(64, "channels of the generators' first layer (published: gen.dim)")
    style_dim: int = setting(8, "numbers in a style code")
    n_downsample: int = setting(2, "times that the content encoder halves an image")
    n_res: int = setting(4, "residual blocks of the content encoder and of the decoder")
    mlp_dim: int = setting(256, "width of the network from a style code to scales and shifts")
    ndf: int = setting(64, "channels of the discriminators' first layer (published: dis.dim)")
    n_layers_d: int = setting(4, "strided convolutions of each discriminator (published: dis.n_layer)")
    num_scales: int = setting(3, "scales that the discriminators judge, each half the one before")
    gan_mode: str = setting("lsgan", "GAN loss: lsgan or nsgan (published: gan_type)")
    gan_w: float = setting(1.0, "weight of the GAN loss")
    recon_x_w: float = setting(10.0, "weight of the reconstruction of images from their own codes")
    recon_s_w: float = setting(1.0, "weight of the reconstruction of sampled styles from translations made with them")
    recon_c_w: float = setting(1.0, "weight of the reconstruction of contents from translations")
    recon_x_cyc_w: float = setting(0.0, "weight of the cycle: images from their translations and their own style")
    vgg_w: float = setting(
        0.0, "weight of the perceptual distance between a translation and its source; above 0 needs vgg_weights"
    )
    vgg_weights: str = setting("", "file with the Caffe weights of VGG-16 (see i2i.networks.vgg)")

    SAMPLE: ClassVar[dict[str, Any]] = Config.SAMPLE | {
        "load_size": 64,
        "ngf": 16,
        "ndf": 16,
        "n_epochs": 12,
        "n_epochs_decay": 0,
        "lr": 4e-4,  # for 600 steps, not 1e6
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "step_size", "ngf", "style_dim", "n_downsample", "n_res", "mlp_dim", "ndf")
        self.at_least(1, "n_layers_d", "num_scales")
        weights = ("gan_w", "recon_x_w", "recon_s_w", "recon_c_w", "recon_x_cyc_w", "vgg_w")
        self.at_least(0, "weight_decay", *weights)
        self.one_of("gan_mode", GAN_MODES)
        own = "for MUNIT, whose learning rate goes by step_size and gamma"
        self.require(self.lr_policy == "linear", "lr_policy", f"left alone {own}")
        self.require(self.n_epochs_decay == 0, "n_epochs_decay", f"0 {own}")
        self.require(0 < self.gamma <= 1, "gamma", "in (0, 1]")
        least, multiple = self.least_side, 2**self.n_downsample
        self.require(
            self.crop_size >= least and self.crop_size % multiple == 0,
            "crop_size",
            f"a multiple of {multiple}, at least {least} for {self.num_scales} scales of {self.n_layers_d} layers",
        )
        if self.vgg_w:
            self.require(
                bool(self.vgg_weights),
                "vgg_weights",
                "a file of VGG-16's Caffe weights when vgg_w is above 0 (a state dict with conv1_1.weight, ... or "
                "features.0.weight, ...; torchvision's weights are others)",
            )
            self.require(self.input_nc == self.output_nc == 3, "vgg_w", "0 unless both domains have 3 channels")

    @property
    def least_side(self) -> int:
        return 2 ** (self.n_layers_d + self.num_scales - 1)  # of which the last discriminator sees one score

    def check_image(self, width: int, height: int) -> None:
        if min(width, height) < self.least_side:
            raise UsageError(
                f"too small for discriminators of {self.num_scales} scales, which judge {self.least_side} pixels"
            )
        multiple = 2**self.n_downsample
        if width % multiple or height % multiple:
            raise UsageError(f"no multiples of {multiple}, as n_downsample={self.n_downsample} needs them")

    @property
    def one_size(self) -> bool:
        return True  # images of A and B are batches of one kind wherever they go through one network


class MUNIT(Method):
    """gen_a and gen_b take the images of their domain apart into content and style and put them together again. A
    translation is the content of one domain in a style, sampled or of an example, of the other."""

    name = "munit"
    title = "unpaired, many answers: content and style apart (Huang et al., ECCV 2018)"
    Config = MUNITConfig
    generators = ("gen_a", "gen_b")

    config: MUNITConfig
    gen_a: MunitGenerator
    gen_b: MunitGenerator
    dis_a: MunitDiscriminator
    dis_b: MunitDiscriminator
    vgg: Vgg16 | None

    def build(self) -> dict[str, nn.Module]:
        config, impl = self.config, self.impl
        self.gan = GANLoss(GAN_MODES[config.gan_mode])
        self.rngs["styles"] = torch.Generator().manual_seed(config.seed)
        self.steps_done = 0
        self.vgg = None
        if config.vgg_w:
            self.vgg = move_network(load_vgg16(config.vgg_weights), self.device, self.form)
        sizes = (config.ngf, config.style_dim, config.n_downsample, config.n_res, config.mlp_dim)
        networks: dict[str, nn.Module] = {}
        for domain, channels in {"a": config.input_nc, "b": config.output_nc}.items():
            networks[f"gen_{domain}"] = init_weights(MunitGenerator(channels, *sizes, impl=impl), "kaiming")
            networks[f"dis_{domain}"] = init_weights(
                MunitDiscriminator(channels, config.ndf, config.n_layers_d, config.num_scales, impl=impl), "normal"
            )
        return networks

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        decay = self.config.weight_decay
        return {name: self.adam(f"{name}_a", f"{name}_b", weight_decay=decay) for name in ("gen", "dis")}

    def draw(self, *batch: Tensor) -> Draws:
        """The styles of the translations that the discriminators' update is shown, then of the generators'."""
        real_a, real_b = batch
        if real_a.shape[2:] != real_b.shape[2:]:
            sizes = " and ".join(f"{x.shape[3]} x {x.shape[2]}" for x in (real_a, real_b))
            raise UsageError(f"preprocess must bring the images of A and B to one size for MUNIT, got {sizes}")
        self.set_rates()
        return Draws((), [self.draw_styles(len(real_a)) for _ in ("dis", "gen")])

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """One update of both discriminators, then one of both generators, on images (N, C, H, W) in [-1, 1], all of one
        size. Among the losses "G" is the weighted sum of the generators'."""
        real = {x: images.contiguous(memory_format=self.form) for x, images in zip("ab", batch, strict=True)}
        # The published code encodes the contents twice, once for each update; in between nothing here has changed.
        with self.autocast():
            content = {x: self.generator(x).encode_content(images) for x, images in real.items()}
        losses = self.update_discriminators(real, content, draws.tensors[0])
        losses |= self.update_generators(real, content, draws.tensors[1])
        return {name: loss.detach() for name, loss in losses.items()}

    def set_rates(self) -> None:
        """Published timing: the count goes up before the update, so the rate falls one update early."""
        self.steps_done += 1
        rate = self.config.lr * self.config.gamma ** (self.steps_done // self.config.step_size)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.steps_done = state["steps_done"]

    def generator(self, domain: str) -> MunitGenerator:
        return getattr(self, f"gen_{domain}")

    def discriminator(self, domain: str) -> MunitDiscriminator:
        return getattr(self, f"dis_{domain}")

    def draw_styles(self, count: int) -> dict[str, Tensor]:
        """(count, style_dim, 1, 1) from N(0, I) for each domain, on the CPU. All processes draw those of all of them
        and take their own, so that several are one of a larger batch."""
        first, everyone = distributed.rank() * count, distributed.world() * count
        drawn = {
            x: torch.randn(everyone, self.config.style_dim, 1, 1, generator=self.rngs["styles"]) for x in ("a", "b")
        }
        return {x: styles[first : first + count] for x, styles in drawn.items()}

    def update_discriminators(self, real: ByDomain, content: ByDomain, style: ByDomain) -> Losses:
        self.zero_grad("dis")
        losses = {}
        for here, there in BOTH_WAYS:
            with torch.no_grad(), self.autocast():
                fake = self.generator(here).decode(content[there], style[here])
            with self.autocast():  # both in one batch, which without norms is as good as two
                scores = self.discriminator(here)(torch.cat([fake, real[here]]))
            losses[f"dis_{here}"] = sum(
                self.gan(of_fake, False) + self.gan(of_real, True)
                for of_fake, of_real in (each.float().chunk(2) for each in scores)
            )
            self.backward(self.config.gan_w * losses[f"dis_{here}"], last=[f"dis_{here}"])
        self.update("dis")
        return losses

    def update_generators(self, real: ByDomain, content: ByDomain, drawn: ByDomain) -> Losses:
        """The losses go back group by group, each freeing its graph, as far as copies of the translations and of the
        codes; what gathers there then goes on through decoders and encoders. The gradients are those of the sum; at
        full width and 128 pixels 230 MiB of maps are kept at a time instead of 367, and 275 instead of 449 with the
        cycle."""
        self.zero_grad("gen")
        with self.autocast():
            style = {x: self.generator(x).encode_style(images) for x, images in real.items()}
        encoded = [*content.values(), *style.values()]
        content, style = ({x: leaf(code) for x, code in codes.items()} for codes in (content, style))
        losses: Losses = {}
        for here, there in BOTH_WAYS:
            with self.autocast():  # the reconstruction and the translation into this domain, as one batch
                contents = torch.cat([content[here], content[there]])
                decoded = self.generator(here).decode(contents, torch.cat([style[here], drawn[here]]))
            own, fake = (leaf(images) for images in decoded.chunk(2))
            groups = self.losses_of_translation(here, there, fake, real, content, style, drawn[here])
            for group in ({f"gen_recon_x_{here}": l1_loss(own, real[here])}, *groups):
                self.backward(self.weighted(group))
                losses |= group
            gradients: list[Any] = [own.grad, fake.grad]
            self.go_back([decoded], [torch.cat(gradients)])
        gradients = [code.grad for code in (*content.values(), *style.values())]
        self.go_back(encoded, gradients, last=["gen_a", "gen_b"])
        self.update("gen")
        return losses | {"G": self.weighted(losses)}

    def losses_of_translation(
        self, here: str, there: str, fake: Tensor, real: ByDomain, content: ByDomain, style: ByDomain, drawn: Tensor
    ) -> Iterator[dict[str, Tensor]]:
        """Of `fake`, the content of the images of `there` in the styles `drawn` for `here`: groups that share a graph.

        Neither content nor style is detached as a target; both get the gradient, as published."""
        config = self.config
        with frozen(self.discriminator(here)):
            with self.autocast():
                scores = self.discriminator(here)(fake)
            yield {f"gen_adv_{here}": total(self.gan(each.float(), True) for each in scores)}
        with self.autocast():
            content_again, style_again = self.generator(here).encode(fake)
        group = {
            f"gen_recon_s_{here}": l1_loss(style_again, drawn),
            f"gen_recon_c_{there}": l1_loss(content_again, content[there]),
        }
        if config.recon_x_cyc_w:
            with self.autocast():
                cycled = self.generator(there).decode(content_again, style[there])
            group[f"gen_cycrecon_x_{there}"] = l1_loss(cycled, real[there])
        yield group
        if self.vgg is not None:
            with self.autocast():
                with torch.no_grad():
                    source = self.vgg(real[there])
                features = self.vgg(fake)
            yield {f"gen_vgg_{here}": normalised_distance(features, source)}

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        return total(getattr(self.config, WEIGHTS[name[:-2]]) * loss for name, loss in losses.items())

    def pair(self, source: str, target: str) -> MunitTranslator:
        parts: list[Any] = [self.translator(f"gen_{domain}") for domain in (source, target)]
        return MunitTranslator(*parts)

    @torch.no_grad()
    def translate(self, images: Tensor) -> Tensor:
        """(N, input_nc, H, W) of domain A in [-1, 1] -> (N, output_nc, H, W) of domain B, in the style of zeros."""
        with self.autocast():
            return self.pair("a", "b")(images.to(self.device, memory_format=self.form)).float()

    @torch.no_grad()
    def visuals(self, real_a: Tensor, real_b: Tensor) -> dict[str, Tensor]:
        real_a, real_b = (x.to(self.device, memory_format=self.form) for x in (real_a, real_b))
        to_b, to_a = self.pair("a", "b"), self.pair("b", "a")
        drawn = sample_styles(1, self.config.style_dim, self.config.seed).to(self.device)  # the same in every picture
        with self.autocast():
            columns = {
                "real_A": real_a,
                "recon_A": to_a.target(real_a),
                "fake_B": to_b(real_a),
                "fake_B, another style": to_b.in_style(drawn)(real_a),
                "fake_B in the style of": to_b.in_style(to_b.target.encode_style(real_b))(real_a),
                "real_B": real_b,
                "recon_B": to_b.target(real_b),
                "fake_A": to_a(real_b),
            }
        return {name: images.float() for name, images in columns.items()}


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()
