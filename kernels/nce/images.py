"""How many images the rows (B * P, C) of a batch belong to, which CUT's trainer does not tell its loss.

P is the number of patches asked for or, of a smaller map, of its positions; B the batch size of the options or, at the
end of an epoch or on one of several GPUs, less. Several pairs may fit, and the wrong one mixes the images without an
error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def mark_images(rows: Tensor, count: int) -> None:
    """Says that these are the rows of `count` images, to a `PatchNCELoss` that is given this very tensor."""
    vars(rows)["_fused_images"] = count


def marked_images(queries: Sequence[Tensor], keys: Sequence[Tensor]) -> int | None:
    """What `mark_images` said of any of these, which must agree."""
    if torch.compiler.is_compiling():  # it knows no attributes of tensors
        return None
    found = {vars(x)["_fused_images"] for x in (*queries, *keys) if "_fused_images" in vars(x)}
    if len(found) > 1:
        raise ValueError(f"feat_q, feat_k: got rows of batches of {sorted(found)} images, want those of one batch")
    return found.pop() if found else None


def count_images(rows: Sequence[int], num_patches: int, batch_size: int) -> int:
    """The only B <= batch_size for which every layer's `rows` are B times at most num_patches rows.

    Raises:
        ValueError: no number fits, or several do.
    """
    fits = [
        images
        for images in range(1, batch_size + 1)
        if all(r % images == 0 and r // images <= num_patches for r in rows)
    ]
    if len(fits) == 1:
        return fits[0]
    text = f"feat_q: got {' and '.join(map(str, dict.fromkeys(rows)))} rows"
    want = f"want those of at most batch_size = {batch_size} images with at most num_patches = {num_patches} each"
    if not fits:
        raise ValueError(f"{text}, {want}")
    several = " or ".join(f"{images} x {rows[0] // images}" for images in fits)
    raise ValueError(
        f"{text}, which may be {several} (images x patches), want rows that can be of one number of images only. Use "
        "kernels.fuse on the network that samples them, whose rows then say it; or give PatchNCELoss `num_patches` "
        "where every map has that many positions; or give the call its `batch_size`"
    )
