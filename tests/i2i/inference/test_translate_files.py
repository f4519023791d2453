"""PNG files of results."""

import numpy as np
import pytest
import torch

from i2i.data.images import read_image
from i2i.errors import UsageError
from i2i.inference.translate_files import encode_png


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_round_trip(tmp_path, channels, bits):
    top = 2**bits - 1
    levels = np.random.default_rng(0).integers(top + 1, size=(5, 7, channels))
    levels[0, :2, 0] = 0, top
    image = torch.from_numpy(levels / top * 2 - 1).permute(2, 0, 1)
    path = tmp_path / "x.png"
    path.write_bytes(encode_png(image, bits))
    back = read_image(path, channels)
    assert np.array_equal(np.round(back.astype(np.float64) * (top / 255)), levels)
    assert encode_png(image * 1.5, bits) == encode_png((image * 1.5).clamp(-1, 1), bits)


def test_a_png_of_five_channels_is_refused():
    with pytest.raises(UsageError, match="1 to 4 channels.*has 5"):
        encode_png(torch.zeros(5, 2, 2), 8)
