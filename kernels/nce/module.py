"""PatchNCE as a module, made and called as CUT's trainer makes and calls its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kernels import backends
from kernels._checks import check_count, check_flag, check_positive, kind
from kernels._tools import NotScriptable
from kernels.nce.checks import check_keys, check_rows
from kernels.nce.images import count_images, marked_images
from kernels.nce.op import patch_nce_loss

Tensor = torch.Tensor


class PatchNCELoss(NotScriptable, nn.Module):
    """`kernels.patch_nce_loss` in place of CUT's `PatchNCELoss(opt)`: rows in, one loss per row out.

    The published module splits the rows (B * P, C) of B images by the batch size of its options, and breaks or mixes
    the images when a batch is smaller. Here the images are counted: by the call's `batch_size`; by the features if they
    are (B, P, C); by the rows if a sampler that `kernels.fuse` knows made them; else by the numbers given here. With
    options these are bounds, `batch_size` images of `num_patches` rows at most, and a call raises if more than one
    number of images fits. `num_patches` itself, given here, is exact: rows are images of that many.

    Args:
        temperature: `nce_T` of CUT, a number; or the options, as the published module takes them: PatchNCELoss(opt) of
            any object with an attribute `nce_T`. Read once, here, are that and where present `num_patches`,
            `batch_size` and `nce_includes_all_negatives_from_minibatch`.
        num_patches: P, rows of one image in (B * P, C); 256 without options.
        all_negatives: `nce_includes_all_negatives_from_minibatch`: one problem of all rows. As in the options, False
            without.
        normalize, decoupled, impl: as in `kernels.patch_nce_loss`. CUT's sampler has normalised its rows already.

    Raises:
        TypeError, ValueError: a number of the wrong kind or size, here or in the options.
    """

    def __init__(
        self,
        temperature: float | Any = 0.07,
        num_patches: int | None = None,
        all_negatives: bool | None = None,
        *,
        normalize: bool = False,
        decoupled: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        options: Any = None if isinstance(temperature, (int, float)) else temperature
        at, self.batch_size = "", None
        if hasattr(options, "nce_T"):
            at, temperature = "nce_T of the options", options.nce_T
            if num_patches is None:
                num_patches = getattr(options, "num_patches", None)
                self.batch_size = getattr(options, "batch_size", None)
            if all_negatives is None:
                all_negatives = getattr(options, "nce_includes_all_negatives_from_minibatch", None)
        check_positive(at or "temperature", temperature)
        num_patches = 256 if num_patches is None else num_patches
        all_negatives = False if all_negatives is None else all_negatives
        check_count("num_patches", num_patches)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        for name, flag in (("all_negatives", all_negatives), ("normalize", normalize), ("decoupled", decoupled)):
            check_flag(name, flag)
        self.temperature = float(temperature)
        self.num_patches = int(num_patches)
        self.all_negatives = all_negatives
        self.normalize = normalize
        self.decoupled = decoupled
        self.impl = backends.checked_impl(impl)

    def forward(
        self, feat_q: Tensor | Sequence[Tensor], feat_k: Tensor | Sequence[Tensor], batch_size: int | None = None
    ) -> Tensor | list[Tensor]:
        """Losses (B * P,), float32, of feat_q, feat_k (B * P, C) or (B, P, C); no gradient reaches feat_k. Lists of
        such features are several layers of one batch, in one call: a list of losses."""
        if isinstance(feat_q, Tensor):
            return self._losses([feat_q], [feat_k], batch_size, ("feat_q", "feat_k"))[0]
        for name, value in (("feat_q", feat_q), ("feat_k", feat_k)):
            if not isinstance(value, (list, tuple)):
                raise TypeError(f"{name}: got {kind(value)}, want a tensor, or feat_q and feat_k as lists of tensors")
            if len(value) != len(feat_q) or not value:
                raise ValueError(f"{name}: got {len(value)} layers, want feat_q's {len(feat_q)}, at least one")
        return self._losses(feat_q, feat_k, batch_size, ("feat_q[{}]", "feat_k[{}]"))

    def _losses(self, queries, keys, batch_size: int | None, names: tuple[str, str]) -> list[Tensor]:
        for layer, (q, k) in enumerate(zip(queries, keys)):
            check_rows(names[0].format(layer), q)
            check_keys(names[1].format(layer), k, names[0].format(layer), q)
        shapes = self._shapes(queries, keys, batch_size)
        losses = patch_nce_loss(
            [q.reshape(shape) for q, shape in zip(queries, shapes)],
            [k.reshape(shape) for k, shape in zip(keys, shapes)],
            temperature=self.temperature,
            normalize=self.normalize,
            decoupled=self.decoupled,
            reduction="none",
            impl=self.impl,
        )
        return [x.flatten() for x in losses]

    def _shapes(self, queries, keys, batch_size: int | None) -> list[tuple[int, ...]]:
        """(B, P, C) of every layer, with one of the first two as -1."""
        if self.all_negatives:
            return [(1, -1, q.shape[-1]) for q in queries]
        flat = [i for i, q in enumerate(queries) if q.dim() == 2]
        rows = [len(queries[i]) for i in flat]
        shapes = [tuple(q.shape) for q in queries]
        if flat:
            if batch_size is None:
                batch_size = marked_images([queries[i] for i in flat], [keys[i] for i in flat])
            if batch_size is None and self.batch_size is not None:
                batch_size = count_images(rows, self.num_patches, int(self.batch_size))
            for i in flat:
                shapes[i] = (self._images(len(queries[i]), batch_size), -1, queries[i].shape[-1])
        return shapes

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
        most = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return (
            f"temperature={self.temperature}, num_patches={self.num_patches}{most}, "
            f"all_negatives={self.all_negatives}, normalize={self.normalize}, decoupled={self.decoupled}"
        )
