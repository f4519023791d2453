"""The published ways of scaling and cutting, against Pillow and against windows of the scaled picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from i2i.data import PREPROCESS_MODES, ImageOptions, preprocess, resize, to_tensor
from i2i.errors import UsageError

BICUBIC = Image.Resampling.BICUBIC


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def by_pillow(image, width, height, resample=BICUBIC):
    return np.asarray(Image.fromarray(image).resize((width, height), resample))


def run(image, mode, seed=0, load_size=40, crop_size=32, flip=False):
    options = ImageOptions(load_size=load_size, crop_size=crop_size, preprocess=mode, flip=flip)
    return preprocess(image, options, np.random.default_rng(seed))


def window_of(crop, image):
    """(top, left) of a tensor in a picture, which must hold it exactly."""
    whole = to_tensor(image)
    height, width = crop.shape[1:]
    places = [
        (y, x)
        for y in range(whole.shape[1] - height + 1)
        for x in range(whole.shape[2] - width + 1)
        if torch.equal(whole[:, y : y + height, x : x + width], crop)
    ]
    assert len(places) == 1
    return places[0]


# What a picture 60 wide and 50 high is scaled to, as (width, height), with load_size 40.
SCALED = {
    "resize_and_crop": (40, 40),
    "crop": (60, 50),
    "scale_width_and_crop": (40, 33),  # int(33.3)
    "scale_shortside_and_crop": (48, 40),
    "patch": (60, 50),
    "trim": (60, 50),
}


@pytest.mark.parametrize("mode", SCALED)
def test_a_random_square_of_the_scaled_picture(mode):
    image = noise(50, 60)
    scaled = by_pillow(image, *SCALED[mode])
    crops = [run(image, mode, seed) for seed in range(12)]
    assert all(crop.shape == (3, 32, 32) and crop.dtype == torch.float32 for crop in crops)
    places = {window_of(crop, scaled) for crop in crops}
    assert len(places) >= (2 if mode == "scale_width_and_crop" else 5)  # it leaves 2 x 9 places


# Whole pictures: scaled, then rounded to multiples of 4.
WHOLE = {
    "scale_width": [(40, 33), (40, 32)],
    "scale_shortside": [(48, 40)],
    "none": [(60, 48)],  # 12.5 times 4, and Python rounds 12.5 to the even 12
    "fixsize": [(32, 32)],
}


@pytest.mark.parametrize("mode", WHOLE)
def test_whole_pictures_are_rounded_to_multiples_of_4(mode):
    want = image = noise(50, 60)
    for size in WHOLE[mode]:
        want = by_pillow(want, *size)
    assert torch.equal(run(image, mode), to_tensor(want))


@pytest.mark.parametrize("mode", ["resize_and_crop", "scale_width", "scale_shortside", "crop", "none", "trim"])
def test_what_has_the_right_size_is_not_touched(mode):
    image = noise(32, 32)
    assert torch.equal(run(image, mode, load_size=32), to_tensor(image))


def test_scale_shortside_shrinks_and_enlarges():
    """The published code leaves larger pictures as they are, against its own description."""
    assert run(noise(80, 120), "scale_shortside").shape == (3, 40, 60)
    assert run(noise(20, 30), "scale_shortside").shape == (3, 40, 60)


def test_scale_width_is_never_lower_than_the_crop():
    assert run(noise(10, 100), "scale_width_and_crop").shape == (3, 32, 32)
    assert run(noise(10, 100), "scale_width").shape == (3, 32, 40)


def test_trim_takes_what_there_is():
    image = noise(20, 60)
    top, left = window_of(run(image, "trim"), image)
    assert run(image, "trim").shape == (3, 20, 32) and top == 0


def test_zoom_draws_each_side_between_four_fifths_and_all():
    image = noise(100, 100)
    sizes = {run(image, "zoom", seed).shape[1:] for seed in range(40)}
    heights, widths = zip(*sizes)
    assert min(heights + widths) >= 80 and max(heights + widths) <= 100
    assert min(heights) < 86 and max(heights) > 94 and any(abs(height - width) > 4 for height, width in sizes)
    assert run(noise(34, 34), "zoom").shape == (3, 32, 32)  # rounded from 32 .. 34, never below the crop


def test_mirrored_half_of_the_time():
    image = noise(32, 32)
    crops = [run(image, "none", seed, flip=True) for seed in range(200)]
    mirrored = sum(torch.equal(crop, to_tensor(image[:, ::-1])) for crop in crops)
    assert 70 <= mirrored <= 130  # 100 and 4 standard deviations
    assert sum(torch.equal(crop, to_tensor(image)) for crop in crops) == 200 - mirrored


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_resize_of_any_channels_is_that_of_each(channels):
    """Not Pillow's of LA and RGBA, which weighs colours by alpha."""
    image = noise(50, 60, channels)
    small = resize(image, 33, 21)
    assert small.dtype == np.uint8
    for i in range(channels):
        np.testing.assert_array_equal(small[..., i], by_pillow(np.ascontiguousarray(image[..., i]), 33, 21))


def test_resize_of_16_bits_is_that_of_8_but_for_rounding():
    image = noise(50, 60) // 2 + 64  # far from 0 and 255, where Pillow clips after each of its two passes
    small = resize(image.astype(np.float32), 33, 21)
    assert small.dtype == np.float32 and small.min() >= 0 and small.max() <= 255
    # it rounds after each, too
    np.testing.assert_allclose(small, by_pillow(image, 33, 21), atol=1.01, rtol=0)
    smooth = 100 + image.astype(np.float32) / 257  # finer than 8 bits can tell
    assert len(np.unique(resize(smooth, 33, 21))) > 1000


def test_too_small_for_the_crop():
    for mode in ("crop", "patch"):
        with pytest.raises(UsageError, match="60 x 20 pixels, smaller than the crop of 32.*scale_shortside_and_crop"):
            run(noise(20, 60), mode)


def test_options_that_cannot_be_meant():
    with pytest.raises(UsageError, match="resize_and_crop, crop, .*got scale_with .did you mean scale_width"):
        ImageOptions(preprocess="scale_with")
    with pytest.raises(UsageError, match="load_size must be at least crop_size .256., got 255"):
        ImageOptions(load_size=255)
    for name, value in {"direction": "BA", "input_nc": 5, "output_nc": 0, "seed": -1, "max_dataset_size": -1}.items():
        with pytest.raises(UsageError, match=f"{name} must be .*got {value}"):
            ImageOptions(**{name: value})


@pytest.mark.parametrize("mode", PREPROCESS_MODES)
def test_every_mode_gives_multiples_of_4_and_depends_on_its_generator_only(mode):
    image = noise(71, 90, 2).astype(np.float32)
    a, b = (run(image, mode, 3, flip=True) for _ in range(2))
    assert torch.equal(a, b) and a.shape[1] % 4 == a.shape[2] % 4 == 0 and a.min() >= -1 and a.max() <= 1
    preview = ImageOptions(40, 32, mode).for_preview()
    assert preprocess(image, preview, np.random.default_rng(0)).shape == (2, 32, 32)
