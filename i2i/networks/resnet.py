"""The ResNet generator of CUT, CycleGAN and pix2pix.

Sequential indices and state_dict keys are those of the published checkpoints. Where one module does the work of two or
three neighbours (norm, activation, padding), the places of the others, which have no keys, are held by an Identity.
"""

from __future__ import annotations

from torch import Tensor, nn

import kernels
from i2i.networks.keys import Recognised, Settings, State, indices, norm_behind, norm_name
from i2i.networks.norms import conv_before, norm_layer
from i2i.networks.taps import TappedGenerator


class ResnetBlock(nn.Module):
    """x + norm(conv(pad(dropout(relu(norm(conv(pad(x)))))))), shape kept; no activation after the sum."""

    def __init__(self, channels: int, norm: str = "instance", dropout: bool = False, impl: str = "auto"):
        super().__init__()
        if dropout:
            padding, middle = 0, [nn.Dropout(0.5), kernels.ReflectionPad2d(1, impl=impl)]
        else:
            padding, middle = 1, [nn.Identity()]  # reflection pad
        self.conv_block = nn.Sequential(
            kernels.ReflectionPad2d(1, impl=impl),
            conv_before(norm, channels, channels, 3),
            norm_layer(norm, channels, activation="relu", padding=padding, impl=impl),
            nn.Identity(),  # ReLU
            *middle,
            conv_before(norm, channels, channels, 3),
            norm_layer(norm, channels, impl=impl),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block[-1](self.conv_block[:-1](x), residual=x)


class ResnetGenerator(TappedGenerator):
    """(N, input_nc, H, W) in [-1, 1] -> (N, output_nc, H, W) in (-1, 1), for H and W multiples of 4.

    `antialias_down` and `antialias_up` on: CUT. Both off: the generator of CycleGAN and pix2pix.
    `norm`: "instance", "batch" or "none"; convolutions have a bias with "instance" only, the last one always.
    `impl` chooses the implementation of the fused operators (see `kernels.instance_norm`).
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        *,
        norm: str = "instance",
        dropout: bool = False,
        antialias_down: bool = True,
        antialias_up: bool = True,
        impl: str = "auto",
    ):
        super().__init__()
        self.impl = impl
        bias = norm == "instance"

        def norm_relu(channels: int, padding: int = 0) -> list[nn.Module]:
            # the Identity is the ReLU
            return [norm_layer(norm, channels, activation="relu", padding=padding, impl=impl), nn.Identity()]

        net: list[nn.Module] = [kernels.ReflectionPad2d(3, impl=impl), nn.Conv2d(input_nc, ngf, 7, bias=bias)]
        net += norm_relu(ngf)
        for width in (ngf, 2 * ngf):
            stride = 1 if antialias_down else 2
            net += [nn.Conv2d(width, 2 * width, 3, stride, padding=1, bias=bias), *norm_relu(2 * width)]
            if antialias_down:
                net.append(kernels.BlurDownsample(2 * width, impl=impl))
        net += [ResnetBlock(4 * ngf, norm, dropout, impl) for _ in range(n_blocks)]
        for width in (4 * ngf, 2 * ngf):
            last = width == 2 * ngf
            if antialias_up:
                net += [kernels.BlurUpsample(width, impl=impl), nn.Conv2d(width, width // 2, 3, padding=1, bias=bias)]
            else:
                net.append(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=bias))
            net += norm_relu(width // 2, padding=3 if last else 0)
        # Norm and ReLU just before the last reflection pad: one module writes the padded map. Taps there (none of the
        # published ones) are cut back to what the published layers hold.
        self.margins = {len(net) - 2: 3, len(net) - 1: 3}
        net += [nn.Identity(), nn.Conv2d(ngf, output_nc, 7), nn.Tanh()]  # the Identity is the reflection pad
        self.model = nn.Sequential(*net)

    def chain(self) -> nn.Sequential | list[nn.Module]:
        return self.model


def resnet_generator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    blocks = indices(state, r"model\.(\d+)\.conv_block\.")
    if "model.1.weight" not in state or not blocks:
        return None
    ngf, input_nc = state["model.1.weight"].shape[:2]
    last = indices(state, r"model\.(\d+)\.weight")[-1]
    output_nc = state[f"model.{last}.weight"].shape[0]
    first = f"model.{blocks[0]}.conv_block"
    dropout = f"{first}.6.weight" in state and state[f"{first}.6.weight"].dim() == 4  # else a batch norm's
    down = "model.7.filt" in state
    up = any(key.endswith(".filt") and int(key.split(".")[1]) > blocks[-1] for key in state)
    norm = norm_behind(state, "model.1", "model.2")
    options = {"norm": norm, "dropout": dropout, "antialias_down": down, "antialias_up": up}
    net = ResnetGenerator(input_nc, output_nc, ngf, len(blocks), **options, impl=impl)
    parts = [f"ResNet generator, {len(blocks)} blocks, width {ngf}", norm_name(norm), *(["dropout"] if dropout else [])]
    antialiased = " and ".join(["down"] * down + ["up"] * up)
    parts += [f"antialiased {antialiased}"] if antialiased else []
    parts.append(f"{input_nc} -> {output_nc} channels")
    return net, f"{', '.join(parts)} ({'CUT' if antialiased else 'CycleGAN, pix2pix'})"
