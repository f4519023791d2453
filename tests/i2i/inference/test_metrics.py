"""Scores of known pairs, and the weights of the FID network."""

import numpy as np
import pytest
import torch

from i2i.errors import UsageError
from i2i.inference.metrics import check_weights, psnr, ssim


def test_wrong_weights_never_reach_the_package(tmp_path):
    with pytest.raises(UsageError, match="no such file of Inception weights"):
        check_weights(tmp_path / "none.pth")
    contents = {
        "torchvision.pth": {"fc.weight": torch.zeros(1000, 2048)},
        "module.pth": torch.nn.Conv2d(1, 1, 1),  # a pickle that names code
        "list.pth": [1],
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("hello world")
    (tmp_path / "empty_stack.pth").write_bytes(b"\x80\x02.")
    for name in (*contents, "text.pth", "empty_stack.pth"):
        with pytest.raises(UsageError, match=f"{name}: not the weights of the FID network"):
            check_weights(tmp_path / name)


def test_scores_of_known_pairs(tmp_path):
    black, grey = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(5), rel=1e-12)  # 51 is a fifth of 255
    assert psnr(grey, grey) == np.inf and ssim(grey, grey) == 1.0
    # constant images: only the first factor of SSIM is left, C1 / (51^2 + C1) with C1 = (0.01 * 255)^2
    assert ssim(black, grey) == pytest.approx(6.5025 / (51**2 + 6.5025), rel=1e-9)


def test_8_bits_against_16_are_compared_in_16():
    shallow = np.full((12, 16, 3), 100, np.uint8)
    assert psnr(shallow, shallow.astype(np.float32)) == np.inf
    deep = (shallow.astype(np.float64) * 257 + 5) / 257
    assert psnr(shallow, deep.astype(np.float32)) == pytest.approx(20 * np.log10(65535 / 5), rel=1e-12)
