"""How good translated images are: FID and KID between folders, PSNR and SSIM of pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from i2i.data.images import Picture
from i2i.data.layouts import read_or_refuse
from i2i.data.scores import finite_mean, peak_ratio
from i2i.errors import UsageError
from i2i.files import read_tensors

METRICS = ("fid", "kid", "psnr", "ssim")
DISTANCES = ("fid", "kid")  # between sets; the others compare pairs
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's file: the original FID network's weights
INSTALL = "pip install torch-fidelity"
FEATURES = 2048
LEAST_SIDE = 11  # of SSIM's window


class Images(Dataset):
    """uint8 RGB tensors (3, H, W), as torch-fidelity wants them."""

    def __init__(self, pictures: list[Picture]):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        pixels = read_or_refuse(self.pictures[index], 3)
        if pixels.dtype != np.uint8:  # 16 bits; the FID network was made for 8
            pixels = pixels.round().astype(np.uint8)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def distances(
    real: list[Picture], fake: list[Picture], wanted: tuple[str, ...], weights: Path | None, device: torch.device
) -> dict[str, float]:
    """FID and/or KID, by torch-fidelity: Inception features of the original FID network, TensorFlow's resizing.

    KID is the mean and the standard deviation over 100 random subsets of 1000 images. Of a smaller folder each subset
    is the whole, and the deviation says nothing.

    Args:
        real, fake: images, at least 2 each.
        wanted: of "fid" and "kid".
        weights: torch-fidelity's file of Inception weights; None lets it download them.

    Raises:
        UsageError: torch-fidelity is missing, or the weights are.
    """
    if min(len(real), len(fake)) < 2:
        raise UsageError(f"{' and '.join(wanted)} need at least 2 images on each side, got {len(real)} and {len(fake)}")
    if weights is not None:
        check_weights(weights)
    try:
        import torch_fidelity  # pyright: ignore[reportMissingImports]  (optional)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise UsageError(
            f"{' and '.join(wanted)} need torch-fidelity, which cannot be loaded ({error}): {INSTALL}"
        ) from None
    sizes = {(picture.width, picture.height) for picture in (*real, *fake)}
    try:
        with torch.cuda.device(device if device.type == "cuda" else -1):
            found = torch_fidelity.calculate_metrics(
                input1=Images(fake),
                input2=Images(real),
                cuda=device.type == "cuda",
                batch_size=32 if len(sizes) == 1 else 1,
                fid="fid" in wanted,
                kid="kid" in wanted,
                kid_subset_size=min(1000, len(real), len(fake)),
                feature_extractor_weights_path=None if weights is None else str(weights),
                cache=False,  # it knows data sets by name, and would take an old result for a new one
                save_cpu_ram=True,  # read in this process: its four others outnumber the cores of a small machine
                verbose=False,
            )
    except URLError as error:
        raise UsageError(
            f"the Inception weights could not be downloaded ({error}): get {WEIGHTS} from torch-fidelity's releases "
            "and name it with --inception"
        ) from None
    names = {
        "frechet_inception_distance": "fid",
        "kernel_inception_distance_mean": "kid",
        "kernel_inception_distance_std": "kid_std",
    }
    return {names[name]: float(value) for name, value in found.items()}


def check_weights(path: Path) -> None:
    """torch-fidelity would run whatever code a pickle names; only a plain file of the right tensors reaches it."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file of Inception weights (wanted: torch-fidelity's {WEIGHTS})")
    try:
        state = read_tensors(path)
        fits = state["fc.weight"].shape == (1008, FEATURES)  # 1008 classes: the original network, not torchvision's
    except (UsageError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UsageError(f"{path}: not the weights of the FID network (wanted: torch-fidelity's {WEIGHTS})")


def psnr(real: np.ndarray, fake: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two images as `read_image` gives them, 8 or 16 bits per channel; infinite
    for equal ones."""
    real, fake, peak = in_levels(real, fake)
    return peak_ratio(float(np.square(real - fake).mean()), peak)


def in_levels(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(the two images in the levels of their files, float64, the highest level): of 8 bits, or of 16 where one has
    those. `read_image` gives 16 bits as float32 in 0 .. 255, a rounding away from the level."""
    if first.dtype == second.dtype == np.uint8:
        return first.astype(np.float64), second.astype(np.float64), 255
    return np.rint(first.astype(np.float64) * 257), np.rint(second.astype(np.float64) * 257), 65535


def ssim(real: np.ndarray, fake: np.ndarray) -> float:
    """Structural similarity of two images (H, W, 3) as `read_image` gives them, sides at least 11 pixels, with the
    Gaussian window of Wang et al. (2004), mean over channels."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise UsageError("ssim needs scikit-image: pip install scikit-image") from None
    if min(real.shape[:2]) < LEAST_SIDE:
        raise UsageError(f"ssim needs sides of at least {LEAST_SIDE} pixels, got {real.shape[1]} x {real.shape[0]}")
    real, fake, peak = in_levels(real, fake)
    score: Any = structural_similarity(
        real, fake, channel_axis=-1, data_range=peak, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(score)


def compare_pairs(pairs: list[tuple[Picture, Picture]], wanted: tuple[str, ...]) -> dict[str, float]:
    """Means of "psnr" and/or "ssim" over pairs (real, translated). The PSNR of equal images, which is infinite, is not
    in the mean, but counted as "psnr_equal_pairs"; where all are equal, the mean is infinite."""
    for a, b in pairs:
        if a[1:3] != b[1:3]:
            raise UsageError(
                f"{b.path} is {b.width} x {b.height}, but {a.path} is {a.width} x {a.height}; pairs must have one size"
            )
        if "ssim" in wanted and min(a.width, a.height) < LEAST_SIDE:
            raise UsageError(f"{a.path}: ssim needs at least {LEAST_SIDE} pixels each way, got {a.width} x {a.height}")
    values: dict[str, list[float]] = {name: [] for name in wanted}
    for a, b in pairs:
        real, fake = (read_or_refuse(picture, 3) for picture in (a, b))
        if real.shape != fake.shape:  # it says behind its pixels only how it is to be turned
            raise UsageError(f"{b.path} and {a.path} are not of one size when upright")
        for name in wanted:
            values[name].append({"psnr": psnr, "ssim": ssim}[name](real, fake))
    result = {name: finite_mean(numbers) for name, numbers in values.items()}
    equal = sum(map(math.isinf, values.get("psnr", ())))
    return result | ({"psnr_equal_pairs": equal} if equal else {})
