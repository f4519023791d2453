"""Module over the patches operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kernels import backends
from kernels._tools import NotScriptable
from kernels.patches.checks import check_num_patches
from kernels.patches.op import sample_patches

Tensor = torch.Tensor


class PatchSampler(NotScriptable, nn.Module):
    """`kernels.sample_patches` as a module without parameters.

    Args:
        num_patches, impl: as in `kernels.sample_patches`.
    """

    def __init__(self, num_patches: int | None = 256, *, impl: str = "auto") -> None:
        super().__init__()
        check_num_patches(num_patches)
        self.num_patches = num_patches
        self.impl = backends.checked_impl(impl)

    def forward(
        self,
        features: Sequence[Tensor],
        ids: Sequence[object] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """features: list of maps (B, C, *spatial); ids: the positions (P,) of each, drawn where None."""
        return sample_patches(features, self.num_patches, ids, generator=generator, impl=self.impl)

    def extra_repr(self) -> str:
        text = f"num_patches={self.num_patches}"
        return text if self.impl == "auto" else f"{text}, impl={self.impl}"
