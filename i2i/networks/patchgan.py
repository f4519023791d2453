"""The PatchGAN discriminators of CUT, CycleGAN and pix2pix, with the indices and keys of the published checkpoints."""

from __future__ import annotations

from torch import Tensor, nn

import kernels
from i2i.errors import UsageError
from i2i.networks.keys import Recognised, Settings, State, indices, norm_behind, norm_name
from i2i.networks.norms import conv_before, norm_layer


class PatchDiscriminator(nn.Module):
    """(N, input_nc, H, W) -> (N, 1, h, w) of unbounded scores, one per overlapping patch (70 pixels at n_layers 3).

    `antialias` on: CUT. Off: CycleGAN and pix2pix (strided convolutions). `norm`: "instance", "batch" or "none". No
    sigmoid. UsageError for images without a whole patch: of less than 3 * 2**n_layers pixels.
    """

    def __init__(
        self,
        input_nc: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        *,
        norm: str = "instance",
        antialias: bool = True,
        impl: str = "auto",
    ):
        super().__init__()
        self.n_layers = n_layers
        stride = 1 if antialias else 2
        net: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        width = ndf
        for level in range(1, n_layers + 1):
            if antialias:
                net.append(kernels.BlurDownsample(width, impl=impl))
            inner, width = width, ndf * min(2**level, 8)
            net += [
                conv_before(norm, inner, width, 4, stride if level < n_layers else 1, padding=1),
                norm_layer(norm, width, activation="leaky_relu", impl=impl),
                nn.Identity(),  # leaky ReLU
            ]
        net.append(nn.Conv2d(width, 1, 4, padding=1))
        self.model = nn.Sequential(*net)

    def forward(self, x: Tensor) -> Tensor:
        least = 3 * 2**self.n_layers  # halved n_layers times, then a row and a column less twice
        if min(x.shape[2:]) < least:
            raise UsageError(
                f"a discriminator of {self.n_layers} layers judges images of at least {least} pixels each way, got "
                f"{x.shape[2]} x {x.shape[3]} (height x width)"
            )
        return self.model(x)


class PixelDiscriminator(nn.Module):
    """(N, input_nc, H, W) -> (N, 1, H, W) of unbounded scores, one per pixel from that pixel alone.

    `norm` as in PatchDiscriminator. The published last convolution has a bias with instance norm only.
    """

    def __init__(self, input_nc: int = 3, ndf: int = 64, *, norm: str = "instance", impl: str = "auto"):
        super().__init__()
        bias = norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(input_nc, ndf, 1),
            nn.LeakyReLU(0.2, inplace=True),
            conv_before(norm, ndf, 2 * ndf, 1),
            norm_layer(norm, 2 * ndf, activation="leaky_relu", impl=impl),
            nn.Identity(),  # leaky ReLU
            nn.Conv2d(2 * ndf, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def patch_discriminator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    if "model.0.weight" not in state or state["model.0.weight"].dim() != 4:
        return None
    convolutions = [n for n in indices(state, r"model\.(\d+)\.weight") if state[f"model.{n}.weight"].dim() == 4]
    if len(convolutions) < 3:
        return None
    ndf, input_nc = state["model.0.weight"].shape[:2]
    n_layers = len(convolutions) - 2
    antialias = "model.2.filt" in state
    norm = norm_behind(state, f"model.{convolutions[1]}", f"model.{convolutions[1] + 1}")
    net = PatchDiscriminator(input_nc, ndf, n_layers, norm=norm, antialias=antialias, impl=impl)
    parts = [f"PatchGAN discriminator, {n_layers} layers, width {ndf}", norm_name(norm)]
    parts += ["antialiased"] if antialias else []
    return net, f"{', '.join(parts)}, {input_nc} channels ({'CUT' if antialias else 'CycleGAN, pix2pix'})"


def pixel_discriminator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    if not {"net.0.weight", "net.2.weight", "net.5.weight"} <= set(state):
        return None
    ndf, input_nc = state["net.0.weight"].shape[:2]
    norm = norm_behind(state, "net.2", "net.3")
    net = PixelDiscriminator(input_nc, ndf, norm=norm, impl=impl)
    return net, f"Pixel discriminator, width {ndf}, {norm_name(norm)}, {input_nc} channels (CycleGAN, pix2pix)"
