"""A small problem of labels with a known answer, from the photographs of `i2i.data.samples.photographs`.

Every image is a part of a photograph, seen as its label says: in red, green, blue or none of them, dark or not. So it
is known what an image should become under any other label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from i2i.data.labels import Label, LabelSpace
from i2i.data.samples.photographs import A, B, luminance, mean_psnr, photograph
from i2i.errors import UsageError

IMAGES = 800
HELD_OUT = 112  # columns at the right of the photographs of A
REDUCTION = 2  # of photographs, so that parts show things


def appearance(grey: Tensor, label: Label) -> Tensor:
    """(H, W) in [-1, 1] -> (3, H, W): the other colours, and all if Dark, at half the intensity."""
    *tint, dark = label
    weights = torch.tensor(tint, dtype=grey.dtype) if any(tint) else torch.ones(3, dtype=grey.dtype)
    weights = (0.5 + 0.5 * weights) * (0.5 if dark else 1.0)
    return (grey + 1) * weights[:, None, None] - 1


class Parts:
    """Parts of photographs, (H, W) in [-1, 1] each, with labels."""

    def __init__(self, grey: Sequence[Tensor], labels: Sequence[Label], flip: bool):
        self.grey, self.labels, self.flip = grey, labels, flip

    def image(self, index: int, rng: np.random.Generator | None) -> Tensor:
        """(3, H, W) in [-1, 1]; mirrored half of the time if there is a generator."""
        image = appearance(self.grey[index], self.labels[index])
        return image.flip(2) if self.flip and rng is not None and rng.random() < 0.5 else image


class SampleAttributes(Parts):
    """IMAGES images, every label as often as any other. `test`: parts of what is held out, with what they are to become
    and the true answers."""

    metric = "PSNR in dB"
    space = LabelSpace(("Red", "Green", "Blue", "Dark"), ("Red+Green+Blue",))

    def __init__(self, crop_size: int, flip: bool, seed: int):
        side = crop_size * REDUCTION
        if side > HELD_OUT:
            largest = HELD_OUT // REDUCTION
            raise UsageError(f"crop_size must be at most {largest} for the sample photographs, got {crop_size}")
        rng = np.random.default_rng([seed, 0])
        vectors = self.space.vectors
        whole = {name: luminance(photograph(name)) for name in A + B}

        def part(photographs: list[Tensor]) -> Tensor:
            image = photographs[rng.integers(len(photographs))]
            top, left = (int(rng.integers(extent - side + 1)) for extent in image.shape)
            return F.avg_pool2d(image[None, top : top + side, left : left + side], REDUCTION)[0]

        train = [image[:, :-HELD_OUT] if name in A else image for name, image in whole.items()]
        super().__init__([part(train) for _ in range(IMAGES)], vectors * (IMAGES // len(vectors)), flip)
        # Every label becomes every other; the first few, which are shown, are of different labels.
        count = len(vectors)
        pairs = [(vectors[i], vectors[(i + shift) % count]) for shift in range(1, count) for i in range(count)]
        test = [part([whole[name][:, -HELD_OUT:] for name in A]) for _ in pairs]
        self.test = Parts(test, [given for given, _ in pairs], flip)
        self.wanted = torch.tensor([wanted for _, wanted in pairs], dtype=torch.float32)
        self.truths = [appearance(grey, wanted) for grey, (_, wanted) in zip(test, pairs)]

    def describe(self) -> str:
        return f"sample photographs: {IMAGES} parts of {', '.join(A + B)}, seen {', '.join(self.space.names)} or not"

    def held_out(self, translate: Callable[[Tensor, Tensor], Tensor]) -> float:
        """`metric` of a translation of images (N, 3, H, W) to labels (N, 4), mean over the held-out parts."""
        images = torch.stack([self.test.image(index, None) for index in range(len(self.truths))])
        return mean_psnr(list(translate(images, self.wanted).cpu()), self.truths)
