"""Folders of noise, the data sets opened from them, and what their pictures must look like."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from i2i.data import ImageOptions, open_dataset, read_image, to_tensor


def noise(height, width, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def opened(mode, *data, phase="train", batch_size=1, **options):
    options = ImageOptions(**{"load_size": 40, "crop_size": 32} | options)
    return open_dataset(mode, tuple(map(str, data)), phase=phase, options=options, batch_size=batch_size)


def whole(path, size=32, channels=3):
    """What a picture looks like where nothing is left to chance."""
    image = Image.fromarray(read_image(path, channels).squeeze()).resize((size, size), Image.Resampling.BICUBIC)
    return to_tensor(np.asarray(image).reshape(size, size, channels))


CALM = {"load_size": 32, "flip": False}  # nothing left to chance but the order


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def paired(root):
    for name in ("one", "sub/two"):
        a = noise(40, 48, len(name))
        save(root / "photos" / f"{name}.png", a)
        save(root / "maps" / f"{name}.bmp", 255 - a)
    return root / "photos", root / "maps"


def tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
