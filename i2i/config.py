"""Everything that determines a training run, with the published defaults of CUT."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from i2i.errors import UsageError
from i2i.losses import GAN_MODES


@dataclass
class Config:
    # data
    data: tuple[str, ...] = ()  # (); (root with trainA and trainB,); (folder A, folder B). () is the sample photographs
    load_size: int = 286  # pixels, images are resized to this square ...
    crop_size: int = 256  # ... and a random square of this is cut out
    flip: bool = True
    batch_size: int = 1
    # networks
    ngf: int = 64
    ndf: int = 64
    n_blocks: int = 9
    # method
    gan_mode: str = "lsgan"
    lambda_nce: float = 1.0
    nce_idt: bool = True
    num_patches: int = 256
    temperature: float = 0.07
    # optimisation
    lr: float = 2e-4
    beta1: float = 0.5
    steps: int = 0  # 0: 400 passes over the larger folder (200 at full rate, 200 falling to 0, as published)
    seed: int = 0
    precision: str = "float32"  # of convolutions and maps; "bfloat16": autocast. Weights and losses stay float32
    published_order: bool = False  # encode the sources of the contrastive loss again instead of keeping their patches
    # bookkeeping, in steps
    save_every: int = 1000
    sample_every: int = 1000

    def __post_init__(self) -> None:
        self.data = tuple(self.data)
        for name in ("load_size", "crop_size", "batch_size", "ngf", "ndf", "n_blocks", "num_patches"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("save_every", "sample_every"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("steps", "seed", "lambda_nce"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("lr", "temperature"):
            self._require(getattr(self, name) > 0, name, "above 0")
        self._require(0 <= self.beta1 < 1, "beta1", "in [0, 1)")
        self._require(self.crop_size >= 32 and self.crop_size % 4 == 0, "crop_size", "a multiple of 4, at least 32")
        places = (self.crop_size // 4) ** 2  # of the smallest tapped maps
        self._require(self.num_patches <= places, "num_patches", f"at most {places}, (crop_size / 4) squared")
        self._require(self.load_size >= self.crop_size, "load_size", f"at least crop_size ({self.crop_size})")
        self._require(self.gan_mode in TRAINABLE_GAN_MODES, "gan_mode", f"one of {', '.join(TRAINABLE_GAN_MODES)}")
        self._require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}")
        self._require(len(self.data) <= 2, "data", "one folder with trainA and trainB, or two folders")

    def _require(self, right: bool, name: str, wanted: str) -> None:
        if not right:
            raise UsageError(f"{name} must be {wanted}, got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise UsageError(f"unknown configuration: {', '.join(sorted(unknown))}")
        return cls(**values)


TRAINABLE_GAN_MODES = tuple(mode for mode in GAN_MODES if mode != "wgangp")  # which needs its gradient penalty

PRECISIONS = ("float32", "bfloat16")

# Of the run on sample photographs: small enough for about a minute on two CPU cores.
SAMPLE = {
    "crop_size": 64,
    "ngf": 16,
    "ndf": 16,
    "n_blocks": 6,
    "num_patches": 64,
    "steps": 1000,
    "save_every": 200,
    "sample_every": 200,
}
