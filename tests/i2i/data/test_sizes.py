"""Pictures that a run cannot be shown are found before it begins: what is refused does fail, the rest does not."""

import numpy as np
import pytest
import torch
from PIL import Image

from i2i.data import PREPROCESS_MODES, ImageOptions, open_training_data, preprocess
from i2i.data.preprocess import final_sizes
from i2i.errors import UsageError
from i2i.methods import METHODS


def save(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


NARROW = {"ngf": 4, "ndf": 4, "preprocess": "none", "flip": False}
CUT = NARROW | {"generator": "resnet_1blocks", "crop_size": 32, "num_patches": 64, "feature_width": 8}
CYCLE = NARROW | {"generator": "resnet_1blocks", "crop_size": 32}
MUNIT = {"ngf": 4, "ndf": 4, "mlp_dim": 8, "n_res": 1, "crop_size": 64, "preprocess": "none"}
# method, settings, the smallest (width, height) that it can be shown, what is too small, and the reason
LIMITS = [
    ("cut", CUT, (32, 32), (28, 32), "too small for num_patches=64: there are 56"),
    ("cut", CUT, (24, 44), (20, 64), "too small for discriminator=basic, which judges 24 pixels and more"),
    ("cut", CUT | {"feature_network": "reshape"}, (24, 24), (20, 24), "discriminator=basic"),
    ("cut", CUT | {"lambda_nce": 0.0}, (24, 24), (24, 20), "discriminator=basic"),
    ("cyclegan", CYCLE, (24, 24), (24, 20), "discriminator=basic"),
    ("cyclegan", CYCLE | {"discriminator": "n_layers", "n_layers_d": 2}, (12, 12), (8, 12), "judges 12 pixels"),
    ("cyclegan", CYCLE | {"discriminator": "pixel"}, (8, 8), (4, 8), "judges 8 pixels"),
    ("opgan", CYCLE | {"nsf": 4}, (24, 24), (20, 24), "discriminator=basic"),
    ("pix2pix", CYCLE | {"generator": "unet_32"}, (32, 64), (36, 64), "no multiples of 32, as generator=unet_32"),
    ("munit", MUNIT, (64, 64), (60, 64), "too small for discriminators of 3 scales, which judge"),
]


def configured(method, settings, data):
    return METHODS[method].Config(data=(str(data),), **settings)


@pytest.mark.parametrize(("method", "settings", "least", "small", "reason"), LIMITS, ids=lambda value: str(value)[:40])
def test_smallest_images(tmp_path, method, settings, least, small, reason):
    """One small picture among others is named; without it the run can be trained on all of them."""
    place = tmp_path / "data"
    for side in ("train",) if method == "pix2pix" else ("trainA", "trainB"):
        factor = 2 if side == "train" else 1
        save(place / side / "a.png", factor * least[0], least[1])
        save(place / side / "b.png", factor * small[0], small[1])
    config = configured(method, settings | ({"dataset_mode": "aligned"} if method == "pix2pix" else {}), place)
    with pytest.raises(UsageError, match=rf"b.png: {small[0]} x {small[1]} pixels, .*{reason}") as caught:
        open_training_data(config)
    assert "leave such pictures out" in str(caught.value) and "\n" not in str(caught.value)
    if method != "pix2pix":
        assert "1 more cannot be taken, either" in str(caught.value)
    for path in place.rglob("b.png"):
        path.unlink()
    data = open_training_data(config)
    model = METHODS[method](config)
    losses = model.step(*(image[None] for image in data.item(0)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    # and the one that was refused does not go through
    with pytest.raises((RuntimeError, ValueError)):
        model.step(*(torch.zeros(1, 3, small[1], small[0]) for _ in range(2)))


def test_rounded_sizes_are_those_that_count(tmp_path):
    """30 x 30 pixels become 32 x 32."""
    for side in ("trainA", "trainB"):
        save(tmp_path / side / "a.png", 30, 31)
    open_training_data(configured("cut", CUT, tmp_path))
    save(tmp_path / "trainB" / "b.png", 29, 31)
    with pytest.raises(UsageError, match=r"b.png: 29 x 31 pixels \(28 x 32 after preprocess=none\), too small"):
        open_training_data(configured("cut", CUT, tmp_path))


def test_one_size_where_images_go_together(tmp_path):
    """In a batch; in the penalty of wgangp; through one network of MUNIT."""
    for side, extent in (("trainA", 64), ("trainB", 96)):
        save(tmp_path / side / "a.png", extent, extent)
    open_training_data(configured("cyclegan", CYCLE | {"batch_size": 2}, tmp_path))
    for method, settings in (("cyclegan", CYCLE | {"gan_mode": "wgangp"}), ("munit", MUNIT)):
        with pytest.raises(UsageError, match="images of A and B must have one size, but .*64 x 64 and 96 x 96 pixels"):
            open_training_data(configured(method, settings, tmp_path))
    save(tmp_path / "trainA" / "b.png", 68, 64)
    open_training_data(configured("cyclegan", CYCLE, tmp_path))
    with pytest.raises(
        UsageError, match="batch_size=2, all images of a domain must have one size, .*a.png and .*b.png"
    ):
        open_training_data(configured("cyclegan", CYCLE | {"batch_size": 2}, tmp_path))
    zoom = CYCLE | {"batch_size": 2, "preprocess": "zoom"}
    with pytest.raises(UsageError, match="preprocess=zoom makes 52 x 52 and 64 x 64 pixels of .*a.png: choose one"):
        for name in ("a.png", "b.png"):
            save(tmp_path / "trainA" / name, 64, 64)
        open_training_data(configured("cyclegan", zoom, tmp_path))


@pytest.mark.parametrize("mode", PREPROCESS_MODES)
def test_sizes_are_foretold(mode):
    for width, height in ((40, 64), (71, 33), (200, 90)):
        options = ImageOptions(40, 32, mode)
        image = np.zeros((height, width, 3), dtype=np.uint8)
        found = {preprocess(image, options, np.random.default_rng(seed)).shape[:0:-1] for seed in range(60)}
        told = final_sizes(width, height, options)
        widths, heights = zip(*told)
        assert all(min(widths) <= w <= max(widths) and min(heights) <= h <= max(heights) for w, h in found)
        if len(told) == 1:
            assert {tuple(size) for size in found} == told
