"""CUT's networks: ResNet generator, PatchGAN discriminator and the MLPs that project patch features.

Sequential indices and state_dict keys are those of the published checkpoints. Norm and activation have no keys, so
where one fused operator does the work of two or three neighbours, the places of the others are held by an Identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import kernels

if not hasattr(kernels, "instance_norm"):
    raise ImportError(
        f"{kernels.__file__} is another package named `kernels` (PyPI has one); i2i needs the one of its own project: "
        "run `pip uninstall kernels`, or give each its own environment"
    )

NCE_LAYERS = (0, 4, 8, 12, 16)


class ResnetBlock(nn.Module):
    """x + IN(conv(pad(relu(IN(conv(pad(x))))))), shape kept; no activation after the sum."""

    def __init__(self, channels: int, impl: str = "auto"):
        super().__init__()
        self.conv_block = nn.Sequential(
            kernels.ReflectionPad2d(1, impl=impl),
            nn.Conv2d(channels, channels, 3),
            kernels.InstanceNorm2d(channels, activation="relu", padding=1, impl=impl),
            nn.Identity(),  # ReLU
            nn.Identity(),  # reflection pad
            nn.Conv2d(channels, channels, 3),
            kernels.InstanceNorm2d(channels, impl=impl),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_block[6](self.conv_block[:6](x), residual=x)


class ResnetGenerator(nn.Module):
    """(N, input_nc, H, W) in [-1, 1] -> (N, output_nc, H, W) in (-1, 1), for H and W multiples of 4.

    `antialias_down` and `antialias_up` on: CUT. Both off: the generator of CycleGAN and pix2pix.
    `impl` chooses the implementation of the fused operators (see `kernels.instance_norm`).
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        *,
        antialias_down: bool = True,
        antialias_up: bool = True,
        impl: str = "auto",
    ):
        super().__init__()
        self.impl = impl

        def norm_relu(channels: int, padding: int = 0) -> list[nn.Module]:
            norm = kernels.InstanceNorm2d(channels, activation="relu", padding=padding, impl=impl)
            return [norm, nn.Identity()]  # the Identity is the ReLU

        net: list[nn.Module] = [kernels.ReflectionPad2d(3, impl=impl), nn.Conv2d(input_nc, ngf, 7), *norm_relu(ngf)]
        for width in (ngf, 2 * ngf):
            stride = 1 if antialias_down else 2
            net += [nn.Conv2d(width, 2 * width, 3, stride, padding=1), *norm_relu(2 * width)]
            if antialias_down:
                net.append(kernels.BlurDownsample(2 * width, impl=impl))
        net += [ResnetBlock(4 * ngf, impl) for _ in range(n_blocks)]
        for width in (4 * ngf, 2 * ngf):
            last = width == 2 * ngf
            if antialias_up:
                net += [kernels.BlurUpsample(width, impl=impl), nn.Conv2d(width, width // 2, 3, padding=1)]
            else:
                net.append(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1))
            net += norm_relu(width // 2, padding=3 if last else 0)
        # Norm and ReLU just before the last reflection pad: one operator writes the padded map. Taps there (none of the
        # published ones) are cut back to what the published layers hold.
        self._padded = {len(net) - 2: 3, len(net) - 1: 3}
        net += [nn.Identity(), nn.Conv2d(ngf, output_nc, 7), nn.Tanh()]  # the Identity is the reflection pad
        self.model = nn.Sequential(*net)

    def forward(
        self,
        x: Tensor,
        layers: Sequence[int] = (),
        encode_only: bool = False,
        ids: Sequence[Tensor] | None = None,
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Without `layers`, the output. With: (output, features), one feature per index into `model`; with
        `encode_only` the list of features alone, and nothing is computed past the last of them.

        A tap on a norm is what the published in-place ReLU leaves there: relu(norm). A tap on a convolution is raw.
        With `ids`, flat positions (P,) for each of the `layers`, features are the patches there, (N, P, C), and their
        gradients are added to those of the maps where they pass (see `kernels.tap_patches`).
        """
        taps = list(layers)
        if taps != sorted(set(taps)) or (taps and not 0 <= taps[0] <= taps[-1] < len(self.model)):
            raise ValueError(f"layers must be ascending indices from 0 to {len(self.model) - 1}, got {taps}")
        if encode_only and not taps:
            raise ValueError("encode_only needs the indices of the wanted layers")
        if ids is not None and len(ids) != len(taps):
            raise ValueError(f"ids must be one tensor for each of the {len(taps)} layers, got {len(ids)}")
        features = []
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in taps:
                margin = self._padded.get(index, 0)
                inside = x[..., margin:-margin, margin:-margin] if margin else x
                if ids is None:
                    features.append(inside)
                elif margin:
                    features += kernels.sample_patches([inside], ids=[ids[len(features)]], impl=self.impl)[0]
                else:
                    x, patches = kernels.tap_patches(x, ids[len(features)], impl=self.impl)
                    features.append(patches)
                if encode_only and index == taps[-1]:
                    return features
        return (x, features) if taps else x

    @torch.no_grad()
    def tap_channels(self, layers: Sequence[int]) -> list[int]:
        """Channels of the features at `layers`, found by encoding a small black image."""
        weight = next(self.parameters())
        image = weight.new_zeros(1, weight.shape[1], 16, 16)
        return [feature.shape[1] for feature in self(image, layers, encode_only=True)]


class PatchDiscriminator(nn.Module):
    """(N, input_nc, H, W) -> (N, 1, h, w) of unbounded scores, one per overlapping patch (70 pixels at n_layers 3).

    `antialias` on: CUT. Off: CycleGAN and pix2pix (strided convolutions). No sigmoid.
    """

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3, *, antialias: bool = True, impl: str = "auto"
    ):
        super().__init__()
        stride = 1 if antialias else 2
        net: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        width = ndf
        for level in range(1, n_layers + 1):
            if antialias:
                net.append(kernels.BlurDownsample(width, impl=impl))
            inner, width = width, ndf * min(2**level, 8)
            net += [
                nn.Conv2d(inner, width, 4, stride if level < n_layers else 1, padding=1),
                kernels.InstanceNorm2d(width, activation="leaky_relu", negative_slope=0.2, impl=impl),
                nn.Identity(),  # leaky ReLU
            ]
        net.append(nn.Conv2d(width, 1, 4, padding=1))
        self.model = nn.Sequential(*net)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PatchFeatureNetwork(nn.Module):
    """CUT's `mlp_sample`: features at sampled positions, each layer through an MLP of its own onto the unit sphere."""

    def __init__(self, channels: Sequence[int], width: int = 256, impl: str = "auto"):
        super().__init__()
        self.layers = len(channels)
        self.impl = impl
        for i, c in enumerate(channels):
            self.add_module(f"mlp_{i}", nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)))

    def forward(
        self,
        features: Sequence[Tensor],
        num_patches: int = 256,
        ids: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C, H, W) -> a list of (B, P, width), rows of unit length, and the list of the positions used.

        Positions are distinct and shared by the batch: those given as `ids`, or drawn (see `kernels.sample_patches`).
        """
        patches, ids = kernels.sample_patches(features, num_patches, ids, generator=generator, impl=self.impl)
        # The epsilon is added to the norm, not a floor under it: with CUT's initialisation the norms of the first
        # layers are about 1e-5, and the two differ. vector_norm, because a row can be exactly 0 (where a ReLU cuts off
        # all channels of a narrow generator): its gradient there is 0, that of a plain root is nan.
        rows = self.project(patches)
        return [y / (torch.linalg.vector_norm(y, dim=-1, keepdim=True) + 1e-7) for y in rows], ids

    def project(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """(B, P, C) of every layer -> (B, P, width), for a loss that normalises."""
        if len(patches) != self.layers:
            raise ValueError(f"this network was built for {self.layers} feature maps, got {len(patches)}")
        return [self.get_submodule(f"mlp_{i}")(x) for i, x in enumerate(patches)]


def init_weights(net: nn.Module, gain: float = 0.02) -> nn.Module:
    """CUT's initialisation, in place: weights Xavier normal with `gain`, biases 0."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
