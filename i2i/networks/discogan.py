"""DiscoGAN's networks (Kim, Cha, Kim, Lee, Kim; ICML 2017), with the state-dict keys of the published code.

The published code works on images in [0, 1] whose channels are in the order blue, green, red (OpenCV's). Here the
networks themselves convert, so that outside them an image is what it is to every other network: [-1, 1], in RGB.
"""

from __future__ import annotations

from torch import Tensor, nn

from i2i.networks.keys import Recognised, Settings, State

BOTTLENECK = 100  # channels of the 1 x 1 map that `extra_layers` adds


def flip_channels(x: Tensor) -> Tensor:
    """RGB to BGR and back."""
    return x.flip(1)


class DiscoGANGenerator(nn.Module):
    """(N, image_nc, H, W) in [-1, 1] -> the same, for H and W multiples of 16; with `extra_layers` 64 or more.

    Without skip connections: an image of 64 x 64 passes through a map of 4 x 4, with `extra_layers` through a single
    vector. Batch norm throughout, so translate in eval mode or by whole batches.
    """

    def __init__(self, image_nc: int = 3, *, extra_layers: bool = False, conv_dim: int = 64):
        super().__init__()
        d = conv_dim

        def down(inner: int, outer: int, stride: int = 2, padding: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(inner, outer, 4, stride, padding, bias=False)
            return [conv, nn.BatchNorm2d(outer), nn.LeakyReLU(0.2, inplace=True)]

        def up(inner: int, outer: int, stride: int = 2, padding: int = 1) -> list[nn.Module]:
            conv = nn.ConvTranspose2d(inner, outer, 4, stride, padding, bias=False)
            return [conv, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]

        layers = [nn.Conv2d(image_nc, d, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        layers += [*down(d, 2 * d), *down(2 * d, 4 * d), *down(4 * d, 8 * d)]
        if extra_layers:
            layers += [*down(8 * d, BOTTLENECK, 1, 0), *up(BOTTLENECK, 8 * d, 1, 0)]
        layers += [*up(8 * d, 4 * d), *up(4 * d, 2 * d), *up(2 * d, d)]
        layers += [nn.ConvTranspose2d(d, image_nc, 4, stride=2, padding=1, bias=False), nn.Sigmoid()]
        self.main = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * flip_channels(self.main(flip_channels(x + 1) / 2)) - 1


class DiscoGANDiscriminator(nn.Module):
    """(N, image_nc, 64, 64) in [-1, 1] -> one score each, (N, 1, 1, 1), and the maps after blocks 2 to 4.

    The scores are logits: the published sigmoid is left to the loss, which is exact where it would saturate.
    """

    conv2: nn.Conv2d
    conv3: nn.Conv2d
    conv4: nn.Conv2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d
    bn4: nn.BatchNorm2d

    def __init__(self, image_nc: int = 3, *, conv_dim: int = 64):
        super().__init__()
        widths = [conv_dim * 2**level for level in range(4)]
        self.conv1 = nn.Conv2d(image_nc, widths[0], 4, stride=2, padding=1, bias=False)
        for block, (inner, outer) in enumerate(zip(widths, widths[1:]), start=2):
            self.add_module(f"conv{block}", nn.Conv2d(inner, outer, 4, stride=2, padding=1, bias=False))
            self.add_module(f"bn{block}", nn.BatchNorm2d(outer))
        self.conv5 = nn.Conv2d(widths[-1], 1, 4, bias=False)
        self.activation = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.activation(self.conv1(flip_channels(x + 1) / 2))
        features = []
        for conv, norm in ((self.conv2, self.bn2), (self.conv3, self.bn3), (self.conv4, self.bn4)):
            x = self.activation(norm(conv(x)))
            features.append(x)
        return self.conv5(x), features


def discogan_generator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    if not {"main.0.weight", "main.3.running_mean", "main.11.weight"} <= set(state):
        return None
    conv_dim, image_nc = state["main.0.weight"].shape[:2]
    extra = "main.26.weight" in state
    net = DiscoGANGenerator(image_nc, extra_layers=extra, conv_dim=conv_dim)
    return net, f"DiscoGAN generator{', extra layers' if extra else ''}, width {conv_dim}, {image_nc} channels"


def discogan_discriminator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser."""
    if not {"conv1.weight", "bn2.weight", "conv5.weight"} <= set(state):
        return None
    conv_dim, image_nc = state["conv1.weight"].shape[:2]
    net = DiscoGANDiscriminator(image_nc, conv_dim=conv_dim)
    return net, f"DiscoGAN discriminator, width {conv_dim}, {image_nc} channels"
