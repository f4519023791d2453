"""What CUT's contrastive loss compares: rows of features, made from a generator's maps in one of three published ways.

Two steps, because the second is taken twice: `sample` chooses places in the maps of the source, `project` makes rows of
the features there, and then of those at the same places of the translated image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from i2i.errors import UsageError
from i2i.networks.batched_linear import batched, linear
from i2i.networks.keys import Recognised, Settings, State, indices
from kernels._dtypes import wide

Ids = list[Tensor] | None


class SampledFeatures(nn.Module):
    """CUT's `sample`: the features themselves at sampled positions. No parameters."""

    def __init__(self, channels: Sequence[int], impl: str = "auto"):
        super().__init__()
        self.layers = len(channels)
        self.impl = impl

    def draw(self, sizes: Sequence[tuple[int, int]], num_patches: int, generator: torch.Generator) -> Ids:
        """Positions in maps of so many rows and columns, as `sample` draws them, on the CPU."""
        least = min(height * width for height, width in sizes)
        if num_patches > least:
            raise ValueError(f"num_patches: got {num_patches}, want at most {least}, the positions of the smallest map")
        return [torch.randperm(height * width, generator=generator)[:num_patches] for height, width in sizes]

    def sample(
        self,
        features: Sequence[Tensor],
        num_patches: int = 256,
        ids: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], Ids]:
        """Maps (B, C, H, W) -> what `project` takes of them, and the `ids` with which a generator gives the same of
        another image (see `TappedGenerator.forward`).

        Positions are distinct and shared by the batch: those given as `ids`, or drawn (see `kernels.sample_patches`).
        """
        return kernels.sample_patches(features, num_patches, ids, generator=generator, impl=self.impl)

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, P, C) of every layer -> rows (B, P, width), for a loss that normalises."""
        if len(features) != self.layers:
            raise ValueError(f"this network was built for {self.layers} feature maps, got {len(features)}")
        return list(features)

    def forward(
        self,
        features: Sequence[Tensor],
        num_patches: int = 256,
        ids: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], Ids]:
        """`sample`, then `project`: a list of (B, P, width), rows of unit length, and the positions used."""
        sampled, ids = self.sample(features, num_patches, ids, generator)
        # The epsilon is added to the norm, not a floor under it: with CUT's initialisation the norms of the first
        # layers are about 1e-5, and the two differ. vector_norm, because a row can be exactly 0 (where a ReLU cuts off
        # all channels of a narrow generator): its gradient there is 0, that of a plain root is nan.
        rows = self.project(sampled)
        return [y / (torch.linalg.vector_norm(y, dim=-1, keepdim=True) + 1e-7) for y in rows], ids


class PatchFeatureNetwork(SampledFeatures):
    """CUT's `mlp_sample`: features at sampled positions, each layer through an MLP of its own."""

    def __init__(self, channels: Sequence[int], width: int = 256, impl: str = "auto"):
        super().__init__(channels, impl)
        for i, c in enumerate(channels):
            self.add_module(f"mlp_{i}", nn.Sequential(nn.Linear(c, width), nn.ReLU(), nn.Linear(width, width)))

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """As SampledFeatures; rows are float32 at least, as losses take them.

        MLPs of several layers in one product: 32 launches in a step of CUT instead of 80, and 70 fewer around them. On
        a CPU it makes no difference: 39.3 ms against 36.8 for all of a step (float32, 256 rows of five layers, one core
        of an AMD EPYC), in bfloat16 634 against 644.
        """
        features = super().project(features)
        alike: dict[torch.Size, list[int]] = {}  # layers by (B, P): one entry, unless maps had batches of their own
        for i, x in enumerate(features):
            alike.setdefault(x.shape[:-1], []).append(i)
        found = {i: y for layers in alike.values() for i, y in zip(layers, self._batched(layers, features))}
        return [found[i] for i in range(self.layers)]

    def _batched(self, layers: Sequence[int], features: Sequence[Tensor]) -> Sequence[Tensor]:
        """Rows of layers that have as many, with one product for those of one width."""
        widths: dict[int, list[int]] = {}
        for i in layers:
            widths.setdefault(features[i].shape[-1], []).append(i)
        order = [i for group in widths.values() for i in group]
        mlps = [cast(nn.Sequential, self.get_submodule(f"mlp_{i}")) for i in order]
        first, second = ([cast(nn.Linear, mlp[at]) for mlp in mlps] for at in (0, 2))
        parameters = [layer.weight for layer in (*first, *second)] + [layer.bias for layer in (*first, *second)]
        device, dtype = features[0].device.type, parameters[0].dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        counts = [len(group) for group in widths.values()] + [len(order)] * 3
        *weights, last_weight, bias, last_bias = batched(counts, dtype, parameters)
        given = []
        for group, weight in zip(widths.values(), weights):
            x = features[group[0]][None] if len(group) == 1 else torch.stack([features[i] for i in group])
            given += [x.flatten(1, -2).to(dtype), weight]
        hidden = linear(bias, *given).relu_()
        y = wide(linear(last_bias, hidden, last_weight))
        rows = dict(zip(order, y.unflatten(1, features[layers[0]].shape[:-1]).unbind()))
        return [rows[i] for i in layers]


class PooledFeatures(SampledFeatures):
    """CUT's `reshape`: maps averaged to 4 x 4 places, each of them a row. No parameters, and nothing is drawn."""

    def draw(self, sizes: Sequence[tuple[int, int]], num_patches: int, generator: torch.Generator) -> Ids:
        return None

    def sample(
        self,
        features: Sequence[Tensor],
        num_patches: int = 256,
        ids: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], Ids]:
        """The maps as they are, and None: a generator without `ids` gives whole maps."""
        return list(features), None

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W) -> (B, 16, C)."""
        return [F.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2) for x in super().project(features)]


def feature_network(name: str, channels: Sequence[int], width: int = 256, *, impl: str = "auto") -> SampledFeatures:
    """By its published name ("mlp_sample", "sample" or "reshape"), for maps of so many `channels`.

    `width`: of the rows that the MLPs of "mlp_sample" make. UsageError for another name.
    """
    if name == "mlp_sample":
        return PatchFeatureNetwork(channels, width, impl)
    if name == "sample":
        return SampledFeatures(channels, impl)
    if name == "reshape":
        return PooledFeatures(channels, impl)
    raise UsageError(f"feature network must be one of mlp_sample, sample, reshape, got {name!r}")


def patch_features(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    layers = indices(state, r"mlp_(\d+)\.0\.weight")
    if not layers:
        return None
    channels = [state[f"mlp_{i}.0.weight"].shape[1] for i in layers]
    width = state["mlp_0.0.weight"].shape[0]
    listed = ", ".join(map(str, channels))
    return PatchFeatureNetwork(channels, width, impl), f"Feature network, MLPs {listed} -> {width} channels (CUT)"
