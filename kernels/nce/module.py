"""PatchNCE as a module, called as CUT's trainer calls its own."""

from __future__ import annotations

import torch
from torch import nn

from kernels import backends
from kernels._checks import check_count, check_flag, check_positive
from kernels._tools import NotScriptable
from kernels.nce.checks import check_keys, check_rows
from kernels.nce.op import patch_nce_loss

Tensor = torch.Tensor


class PatchNCELoss(NotScriptable, nn.Module):
    """`kernels.patch_nce_loss` for trainers written around CUT's `PatchNCELoss(opt)`: rows in, one loss per row out.

    The published module splits its rows by the batch size of the options, and breaks or mixes images when a batch is
    smaller. Here the data says: features (B, P, C) carry it, and rows (B * P, C) are images of `num_patches` rows each,
    or as many images as the call's `batch_size`.

    Args:
        temperature: `nce_T` of CUT.
        num_patches: P, rows of one image in (B * P, C).
        all_negatives: `nce_includes_all_negatives_from_minibatch`: one problem of all rows.
        normalize, decoupled, impl: as in `kernels.patch_nce_loss`. CUT's sampler has normalised its rows already.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        num_patches: int = 256,
        all_negatives: bool = False,
        *,
        normalize: bool = False,
        decoupled: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_count("num_patches", num_patches)
        for name, flag in (("all_negatives", all_negatives), ("normalize", normalize), ("decoupled", decoupled)):
            check_flag(name, flag)
        self.temperature = float(temperature)
        self.num_patches = int(num_patches)
        self.all_negatives = all_negatives
        self.normalize = normalize
        self.decoupled = decoupled
        self.impl = backends.checked_impl(impl)

    def forward(self, feat_q: Tensor, feat_k: Tensor, batch_size: int | None = None) -> Tensor:
        """feat_q, feat_k: (B, P, C) or (B * P, C). Returns losses (B * P,), float32; no gradient reaches feat_k."""
        check_rows("feat_q", feat_q)
        check_keys("feat_k", feat_k, "feat_q", feat_q)
        width = feat_q.shape[-1]
        if self.all_negatives:
            shape = (1, -1, width)
        elif feat_q.dim() == 3:
            shape = feat_q.shape
        else:
            shape = (self._images(len(feat_q), batch_size), -1, width)
        losses = patch_nce_loss(
            feat_q.reshape(shape),
            feat_k.reshape(shape),
            temperature=self.temperature,
            normalize=self.normalize,
            decoupled=self.decoupled,
            reduction="none",
            impl=self.impl,
        )
        assert isinstance(losses, Tensor)  # of tensors, no list
        return losses.flatten()

    def _images(self, rows: int, batch_size: int | None) -> int:
        if batch_size is not None:
            check_count("batch_size", batch_size)
            if rows % batch_size:
                raise ValueError(f"batch_size: got {batch_size} for {rows} rows, want a number that divides them")
            return int(batch_size)
        if rows % self.num_patches:
            raise ValueError(
                f"feat_q: got {rows} rows, want a multiple of num_patches = {self.num_patches}; for images of another "
                "number of rows give features (B, P, C), or batch_size"
            )
        return rows // self.num_patches

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, num_patches={self.num_patches}, all_negatives={self.all_negatives}, "
            f"normalize={self.normalize}, decoupled={self.decoupled}"
        )
