"""CycleGAN's history of translated images (Shrivastava et al., CVPR 2017, section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor


class ImagePool:
    """Holds up to `size` images, detached, on their device, and answers new ones now and then with old ones.

    What becomes of the next images is drawn before they are there, from `generator` (on the CPU) alone: given that and
    `state`, a pool goes on exactly.
    """

    def __init__(self, size: int, generator: torch.Generator):
        self.size, self.generator = size, generator
        self.images: list[Tensor] = []  # each (1, C, H, W): sizes may differ from step to step
        # Of each of the next images: the place of the one that is returned and replaced, or None: it returns itself.
        self.places: list[int | None] = []

    def draw(self, count: int) -> None:
        """Decide about the next `count` images. Until the pool is full, each is kept and returned; from then on, half
        the time a random one of the pool is returned and replaced by it, half the time it is returned and not kept."""
        self.places = []
        for index in range(count):
            place = None
            full = len(self.images) + index >= self.size
            if self.size and full and torch.rand((), generator=self.generator) > 0.5:
                place = int(torch.randint(self.size, (), generator=self.generator))
            self.places.append(place)

    def exchange(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, detached, in the same memory format, as `draw` has decided for these N. Size 0:
        `images` return."""
        images = images.detach()
        if self.size == 0:
            return images
        return torch.cat([self._exchange(*each) for each in zip(images.split(1), self.places, strict=True)])

    def _exchange(self, image: Tensor, place: int | None) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())  # a part of a batch would keep the whole batch in memory
        elif place is not None:
            old, self.images[place] = self.images[place], image.clone()
            return old
        return image

    def state(self) -> list[Tensor]:
        return list(self.images)

    def load(self, images: list[Tensor], device: torch.device, form: torch.memory_format) -> None:
        self.images = [image.to(device, memory_format=form) for image in images]
