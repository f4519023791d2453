"""StarGAN's networks (Choi et al., CVPR 2018) and MatchGAN's variants of them (Sun, Bhattarai, Kim; ACCV 2020).

State-dict keys are those of the published `{iteration}-G.ckpt` and `{iteration}-D.ckpt`. Where one fused operator does
the work of norm and ReLU, the ReLU's place is held by an Identity.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kernels
from i2i.data.labels import LabelSpace
from i2i.errors import UsageError
from i2i.networks.convolution import Conv2d
from i2i.networks.keys import Recognised, Settings, State


class TrackedInstanceNorm2d(kernels.InstanceNorm2d):
    """Instance norm with weight, bias and the running statistics of the published files, which it never normalises by.

    The published code trains with `track_running_stats=True` and never calls `eval()`: every published picture is made
    with the statistics of the image itself, and the running ones give garbage (yunjey/stargan#102, #140). Training
    keeps them up to date, as published, so that the files can be exchanged; eval mode leaves them alone.
    """

    def __init__(self, channels: int, activation: str = "none", impl: str = "auto"):
        super().__init__(channels, affine=True, track_running_stats=True, activation=activation, impl=impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual: (N, C, H, W), and so is the result."""
        if self.training:
            return super().forward(x, residual)
        return kernels.instance_norm(
            x, self.weight, self.bias, eps=self.eps, activation=self.activation, residual=residual, impl=self.impl
        )


class ResidualBlock(nn.Module):
    """x + IN(conv(relu(IN(conv(x))))), zero-padded, shape kept; no activation after the sum."""

    def __init__(self, channels: int, impl: str = "auto"):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            TrackedInstanceNorm2d(channels, "relu", impl),
            nn.Identity(),  # ReLU
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            TrackedInstanceNorm2d(channels, impl=impl),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main[4](self.main[:4](x), residual=x)


def generator_layers(conv_dim: int, c_dim: int, repeat_num: int, image_nc: int, impl: str) -> list[nn.Module]:
    """The layers of both generators. All padding is zero, not reflection: instance norm takes away what a constant
    label map adds to a plane, and only the border, where the padding cuts the map off, tells one label from another."""

    def norm_relu(channels: int) -> list[nn.Module]:
        return [TrackedInstanceNorm2d(channels, "relu", impl), nn.Identity()]  # the Identity is the ReLU

    layers = [nn.Conv2d(image_nc + c_dim, conv_dim, 7, padding=3, bias=False), *norm_relu(conv_dim)]
    for width in (conv_dim, 2 * conv_dim):
        layers += [nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False), *norm_relu(2 * width)]
    layers += [ResidualBlock(4 * conv_dim, impl) for _ in range(repeat_num)]
    for width in (4 * conv_dim, 2 * conv_dim):
        layers += [nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False), *norm_relu(width // 2)]
    return [*layers, nn.Conv2d(conv_dim, image_nc, 7, padding=3, bias=False), nn.Tanh()]


def with_label(x: Tensor, c: Tensor) -> Tensor:
    """x (N, C, H, W) and, as further channels, c (N, c_dim), each value all over a plane."""
    planes = c.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    form = torch.contiguous_format if x.is_contiguous() else torch.channels_last  # of both, for the result to have it
    return torch.cat([x, planes.contiguous(memory_format=form)], 1)


class StarGANGenerator(nn.Module):
    """(N, image_nc, H, W) in [-1, 1] and target labels (N, c_dim) -> (N, image_nc, H, W) in (-1, 1), for H and W
    multiples of 4. 8,430,528 parameters with the published defaults.

    `impl` chooses the implementation of the fused operators (see `kernels.instance_norm`).
    """

    labels: LabelSpace  # of one that was read from a file

    def __init__(
        self, conv_dim: int = 64, c_dim: int = 5, repeat_num: int = 6, *, image_nc: int = 3, impl: str = "auto"
    ):
        super().__init__()
        self.main = nn.Sequential(*generator_layers(conv_dim, c_dim, repeat_num, image_nc, impl))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.main(with_label(x, c))


class MatchGANGenerator(nn.Module):
    """StarGAN's generator, its layers in two halves that part in the middle of the residual blocks."""

    labels: LabelSpace

    def __init__(
        self, conv_dim: int = 64, c_dim: int = 5, repeat_num: int = 6, *, image_nc: int = 3, impl: str = "auto"
    ):
        super().__init__()
        layers = generator_layers(conv_dim, c_dim, repeat_num, image_nc, impl)
        middle = 9 + repeat_num // 2
        self.encoder = nn.Sequential(*layers[:middle])
        self.decoder = nn.Sequential(*layers[middle:])

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.decoder(self.encoder(with_label(x, c)))


class LabelPlanes(nn.Module):
    """`with_label` as a layer. labels: (1, c_dim), for every image, or (L, c_dim), all of them for the only image."""

    labels: Tensor

    def __init__(self, labels: Tensor):
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.labels) == 1:  # and no `max` over the batch: its size is a symbol in an export
            return with_label(x, self.labels.expand(len(x), -1))
        return with_label(x.expand(len(self.labels), -1, -1, -1), self.labels)


class LabelledTranslator(nn.Module):
    """A generator of StarGAN or MatchGAN whose label is fixed, so that images are all it takes.

    (N, input_nc, H, W) in [-1, 1] -> (N, input_nc, H, W) in (-1, 1) with `labels` (1, c_dim); (1, ...) -> (L, ...) with
    `labels` (L, c_dim). H and W as for the generator, which is copied and left alone.

    One chain of layers with plain instance norms: what tiles and ONNX files are made of. Tracked ones would, in train
    mode, update the running statistics that nothing reads, and be exported with them.
    """

    def __init__(self, generator: StarGANGenerator | MatchGANGenerator, labels: Tensor):
        super().__init__()
        halves: Any = copy.deepcopy(generator).children()
        layers = [layer for half in halves for layer in half]
        self.input_nc = layers[0].in_channels - labels.shape[1]
        self.main = nn.Sequential(LabelPlanes(labels), *layers)
        for owner in list(self.main.modules()):
            for name, norm in owner.named_children():
                if isinstance(norm, TrackedInstanceNorm2d):
                    setattr(owner, name, untracked(norm))

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)


def untracked(norm: TrackedInstanceNorm2d) -> kernels.InstanceNorm2d:
    """The same norm, with the same parameters, without running statistics."""
    plain = kernels.InstanceNorm2d(norm.num_features, norm.eps, affine=True, activation=norm.activation, impl=norm.impl)
    plain.weight, plain.bias = norm.weight, norm.bias
    return plain


class StarGANDiscriminator(nn.Module):
    """(N, image_nc, image_size, image_size) -> scores (N, 1, h, w) with h = w = image_size // 2**repeat_num, unbounded,
    one per overlapping patch, and label logits (N, c_dim). No norm, as the gradient penalty needs.

    44,762,048 parameters with the published defaults.
    """

    def __init__(
        self, image_size: int = 128, conv_dim: int = 64, c_dim: int = 5, repeat_num: int = 6, *, image_nc: int = 3
    ):
        super().__init__()
        self.image_size = image_size
        side = image_size // 2**repeat_num  # of the last map
        if side == 0:
            raise UsageError(
                f"image_size must be at least {2**repeat_num} for {repeat_num} halvings (repeat_num), got {image_size}"
            )
        widths = [image_nc, *(conv_dim * 2**level for level in range(repeat_num))]
        layers: list[nn.Module] = []
        for inner, outer in zip(widths, widths[1:]):
            layers += [Conv2d(inner, outer, 4, stride=2, padding=1), nn.LeakyReLU(0.01, inplace=True)]
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(widths[-1], 1, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(widths[-1], c_dim, side, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What all heads start from: (N, conv_dim * 2**(repeat_num - 1), h, w)."""
        if x.shape[2:] != (self.image_size, self.image_size):
            raise UsageError(
                f"x: got {tuple(x.shape)}, want images of {self.image_size} x {self.image_size}, the image_size that "
                "this discriminator was built for"
            )
        return self.main(x)

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(scores, label logits) of `features`."""
        return self.conv1(features), self.conv2(features).flatten(1)


class MatchGANDiscriminator(StarGANDiscriminator):
    """StarGAN's discriminator with a third head, which says of two images whether they show the same label.

    44,794,816 parameters with the published defaults.
    """

    def __init__(
        self, image_size: int = 128, conv_dim: int = 64, c_dim: int = 5, repeat_num: int = 6, *, image_nc: int = 3
    ):
        super().__init__(image_size, conv_dim, c_dim, repeat_num, image_nc=image_nc)
        self.conv3 = nn.Conv2d(2 * self.conv2.in_channels, 2, self.conv2.weight.shape[2], bias=False)

    def match(self, features: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Logits (P, 2) of the pairs (first[i], second[i]) of `features`' images: different labels, same label.

        The published code computes the features of both images of a pair anew and convolves the two maps one above the
        other. That convolution is a sum over its halves, so each image is convolved once whatever the pairs.
        """
        left, right = (F.conv2d(features, half).flatten(1) for half in self.conv3.weight.chunk(2, dim=1))
        return left[first] + right[second]


def stargan_generator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py) of both generators."""
    matching = "encoder.1.running_mean" in state
    first, last = ("encoder", "decoder") if matching else ("main", "main")
    if f"{first}.1.running_mean" not in state:
        return None
    conv_dim, inputs = state[f"{first}.0.weight"].shape[:2]
    blocks = sum(key.endswith(".main.0.weight") for key in state)
    end = max(int(key.split(".")[1]) for key in state if key.startswith(f"{last}."))
    image_nc = state[f"{last}.{end}.weight"].shape[0]
    kind, name = (MatchGANGenerator, "MatchGAN") if matching else (StarGANGenerator, "StarGAN")
    net = kind(conv_dim, inputs - image_nc, blocks, image_nc=image_nc, impl=impl)
    net.labels = labels_of(config, inputs - image_nc)
    size = f"{blocks} blocks, width {conv_dim}, {image_nc} channels, {inputs - image_nc} labels"
    return net, f"{name} generator, {size} ({', '.join(net.labels.names)})"


def labels_of(config: Settings, c_dim: int) -> LabelSpace:
    """What the labels mean, by the configuration of a checkpoint of ours; published files do not say."""
    if "selected_attrs" not in config:
        return LabelSpace([f"label_{number}" for number in range(1, c_dim + 1)])
    return LabelSpace(config["selected_attrs"], config["exclusive"], config["label_kind"] == "classes")


def stargan_discriminator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser of both discriminators."""
    if not {"main.0.bias", "conv1.weight", "conv2.weight"} <= set(state):
        return None
    conv_dim, image_nc = state["main.0.weight"].shape[:2]
    c_dim, _, side, _ = state["conv2.weight"].shape
    halvings = sum(key.startswith("main.") and key.endswith(".bias") for key in state)
    size = side * 2**halvings
    matching = "conv3.weight" in state
    kind, name = (MatchGANDiscriminator, "MatchGAN") if matching else (StarGANDiscriminator, "StarGAN")
    net = kind(size, conv_dim, c_dim, halvings, image_nc=image_nc)
    return net, f"{name} discriminator of {size} x {size}, width {conv_dim}, {image_nc} channels, {c_dim} labels"
