"""A small unpaired problem with a known answer, made from the photographs that ship inside scikit-image.

Domain A: crops of two photographs. Domain B: crops of three *other* photographs, shown through `stylise`. Of A's
photographs the right parts are held out, and `stylise` of them is the true answer.
The photographs are in the public domain or CC0 (scikit-image says so at each); nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2i.errors import UsageError

HEIGHT = 192  # of every photograph after reduction, in pixels; crops then show things and not only texture
A = ("chelsea", "coffee")
B = ("astronaut", "rocket", "camera")
EXPOSURE = (-0.1, 0.45)  # mean and standard deviation of every photograph's luminance, which is in [-1, 1]
STOPS = ((6, 22, 58), (36, 110, 168), (240, 246, 240))  # sRGB of black, middle grey and white after `stylise`


def luminance(image: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W) in [-1, 1], by the weights of Rec. 601."""
    red, green, blue = image.unbind(-3)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def stylise(image: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> the same as a cyanotype: luminance, from Prussian blue to paper white."""
    dark, middle, light = (image.new_tensor(stop).view(3, 1, 1) / 127.5 - 1 for stop in STOPS)
    position = luminance(image).unsqueeze(-3) + 1  # 0 black, 1 middle grey, 2 white
    return torch.lerp(torch.lerp(dark, middle, position.clamp(max=1)), light, (position - 1).clamp(min=0))


def photograph(name: str) -> Tensor:
    """One of scikit-image's photographs as (3, HEIGHT, W) in [-1, 1], W in proportion and a multiple of 4.

    Exposed alike: shifted and stretched to one mean and spread of luminance. How bright an answer should be is told to
    a method only by the distribution of B; were its photographs darker or harder than those of A, a perfect method
    would give darker or harder answers than `stylise` does.
    """
    try:
        import skimage.data
    except ImportError:
        raise UsageError(
            "the sample photographs come with scikit-image: pip install scikit-image, or give your own with --data"
        ) from None
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    width = round(image.width * HEIGHT / image.height / 4) * 4
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1
    x = torch.from_numpy(pixels).permute(2, 0, 1)
    y = luminance(x)
    return ((x - y.mean()) * (EXPOSURE[1] / y.std()) + EXPOSURE[0]).clamp(-1, 1)


class SamplePhotographs:
    """Image pairs (crop of A, crop of B) by number, the same for the same seed and number; and the held-out parts."""

    def __init__(self, crop_size: int, flip: bool, seed: int):
        if crop_size > HEIGHT // 2:
            raise UsageError(f"crop_size must be at most {HEIGHT // 2} for the sample photographs, got {crop_size}")
        self.crop_size, self.flip, self.seed = crop_size, flip, seed
        whole = [photograph(name) for name in A]
        cut = [image.shape[-1] - HEIGHT * 3 // 5 // 4 * 4 for image in whole]
        self.train_a = [image[..., :at] for image, at in zip(whole, cut, strict=True)]
        self.train_b = [stylise(photograph(name)) for name in B]
        self.test_a = [image[..., at:] for image, at in zip(whole, cut, strict=True)]
        self.test_truth = [stylise(image) for image in self.test_a]

    def __len__(self) -> int:
        return len(self.train_a)

    def describe(self) -> str:
        return f"sample photographs: A = {', '.join(A)}; B = {', '.join(B)}, stylised"

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        """Images (3, crop, crop) of A and of B for training image `number`."""
        rng = np.random.default_rng([self.seed, number])
        return self._crop(self.train_a, rng), self._crop(self.train_b, rng)

    def _crop(self, photographs: list[Tensor], rng: np.random.Generator) -> Tensor:
        image = photographs[rng.integers(len(photographs))]
        top, left = (int(rng.integers(size - self.crop_size + 1)) for size in image.shape[1:])
        image = image[:, top : top + self.crop_size, left : left + self.crop_size]
        return image.flip(2) if self.flip and rng.random() < 0.5 else image
