"""Small problems with a known answer, made from the photographs that ship inside scikit-image.

Domain A: crops of photographs. Domain B: crops seen through `stylise`, of *other* photographs for unpaired methods,
of the same for paired ones. Of two photographs the right parts are held out, and `stylise` of them is the true answer.
The photographs are in the public domain or CC0 (scikit-image says so at each); nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2i.data.images import REC_601
from i2i.data.scores import finite_mean, peak_ratio
from i2i.errors import UsageError

HEIGHT = 192  # of every photograph after reduction, in pixels; crops then show things and not only texture
A = ("chelsea", "coffee")
B = ("astronaut", "rocket", "camera")
EXPOSURE = (-0.1, 0.45)  # mean and standard deviation of every photograph's luminance, which is in [-1, 1]
CROPS = 50  # of one pass: with 2, the photographs of A, an epoch would be nothing
STOPS = ((6, 22, 58), (36, 110, 168), (240, 246, 240))  # sRGB of black, middle grey and white after `stylise`


def luminance(image: Tensor) -> Tensor:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W) in [-1, 1], by the weights of Rec. 601."""
    red, green, blue = (weight * plane for weight, plane in zip(REC_601, image.unbind(-3), strict=True))
    return red + green + blue


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
    """(crop of A, crop of B) by number, the same for the same seed and number; and the held-out parts.

    `mode`: "unaligned", two photographs of A and three others of B; "singleimage", one of each; "aligned", the same
    crop of any of the five on both sides.
    """

    metric = "PSNR in dB"

    def __init__(self, crop_size: int, flip: bool, seed: int, mode: str = "unaligned"):
        if mode not in ("unaligned", "aligned", "singleimage"):
            raise UsageError(f"dataset_mode {mode} is not for the sample photographs; name your own with --data")
        self.aligned = mode == "aligned"
        # A U-Net halves its input until nothing is left, and so needs held-out parts that are wide, and whole crops.
        held_out, largest = (128, 128) if self.aligned else (112, HEIGHT // 2)
        if crop_size > largest:
            raise UsageError(f"crop_size must be at most {largest} for the sample photographs, got {crop_size}")
        self.crop_size, self.flip, self.seed = crop_size, flip, seed
        self.names = (A[:1], B[:1]) if mode == "singleimage" else (A + B, A + B) if self.aligned else (A, B)
        whole = {name: photograph(name) for name in dict.fromkeys(sum(self.names, ()))}
        train = {name: whole[name][..., :-held_out] if name in A else whole[name] for name in whole}
        self.train_a = [train[name] for name in self.names[0]]
        self.train_b = [stylise(train[name]) for name in self.names[1]]
        height, width = (side - side % crop_size if self.aligned else side for side in (HEIGHT, held_out))
        self.test_a = [whole[name][:, :height, -held_out:][..., :width] for name in A if name in self.names[0]]
        self.test_truth = [stylise(image) for image in self.test_a]

    def __len__(self) -> int:
        return CROPS

    def describe(self) -> str:
        a, b = (", ".join(names) for names in self.names)
        return f"sample photographs: A = {a}; B = {'the same' if self.aligned else b}, stylised"

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        """Images (3, crop, crop) of A and of B for training image `number`."""
        rng = np.random.default_rng([self.seed, number])
        a = self._crop(self.train_a, rng)
        return a, self._crop(self.train_b, np.random.default_rng([self.seed, number]) if self.aligned else rng)

    def _crop(self, photographs: list[Tensor], rng: np.random.Generator) -> Tensor:
        image = photographs[rng.integers(len(photographs))]
        top, left = (int(rng.integers(size - self.crop_size + 1)) for size in image.shape[1:])
        image = image[:, top : top + self.crop_size, left : left + self.crop_size]
        return image.flip(2) if self.flip and rng.random() < 0.5 else image

    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        """(held-out parts of A, their true answers)."""
        return torch.stack(self.test_a[:count]), torch.stack(self.test_truth[:count])

    def held_out(self, translate: Callable[[Tensor], Tensor]) -> float:
        """`metric` of a translation (1, 3, H, W) -> (1, 3, H, W), mean over the held-out parts."""
        answers = [translate(image[None])[0].cpu() for image in self.test_a]
        return mean_psnr(answers, self.test_truth)


def mean_psnr(pictures: Sequence[Tensor], truths: Sequence[Tensor]) -> float:
    """Mean over pictures (3, H, W) in [-1, 1], clamped, of the peak signal-to-noise ratio in dB."""
    errors = [(x.clamp(-1, 1) - truth).square().mean() for x, truth in zip(pictures, truths, strict=True)]
    return finite_mean([peak_ratio(float(error), 2) for error in errors])
