"""Feature maps of a generator at chosen layers, for contrastive losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import kernels

NCE_LAYERS = (0, 4, 8, 12, 16)


class TappedGenerator(nn.Module):
    """A chain of modules that gives its feature maps on the way, and can stop at the last one wanted."""

    impl: str  # of the fused operators
    margins: dict[int, int] = {}  # indices whose maps come with so many pixels of padding already: cut off when tapped

    def chain(self) -> nn.Sequential | list[nn.Module]:
        """The modules in the order they run; taps are indices into them."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        layers: Sequence[int] = (),
        encode_only: bool = False,
        ids: Sequence[Tensor] | None = None,
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Without `layers`, the output. With: (output, features), one feature per index into the chain; with
        `encode_only` the list of features alone, and nothing is computed past the last of them.

        A tap on a norm is what the published in-place ReLU leaves there: relu(norm). A tap on a convolution is raw.
        With `ids`, flat positions (P,) for each of the `layers`, features are the patches there, (N, P, C), and their
        gradients are added to those of the maps where they pass (see `kernels.tap_patches`).
        """
        chain, taps = self.chain(), list(layers)
        if taps != sorted(set(taps)) or (taps and not 0 <= taps[0] <= taps[-1] < len(chain)):
            raise ValueError(f"layers must be ascending indices from 0 to {len(chain) - 1}, got {taps}")
        if encode_only and not taps:
            raise ValueError("encode_only needs the indices of the wanted layers")
        if ids is not None and len(ids) != len(taps):
            raise ValueError(f"ids must be one tensor for each of the {len(taps)} layers, got {len(ids)}")
        features = []
        for index, layer in enumerate(chain):
            x = layer(x)
            if index in taps:
                margin = self.margins.get(index, 0)
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

    @torch.no_grad()
    def tap_sizes(self, layers: Sequence[int], height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of the features at `layers` of an image of so many, found by encoding a black one: of a
        network with a single channel, which takes 16 ms for 256 x 256 (on the meta device it was 100)."""
        weight = next(self.parameters())
        image = weight.new_zeros(1, weight.shape[1], height, width)
        return [(feature.shape[2], feature.shape[3]) for feature in self(image, layers, encode_only=True)]
