"""All that the foreign benchmark drives, by name."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.outside import checkouts, cut_family, munit, packages, stargan
from benchmarks.outside.driven import Driven, Setting

OPTIONS = ("cut", "cyclegan", "munit", "stargan")  # of the command line, each with a checkout


class Trainer(NamedTuple):
    """option: that names its checkout, one of OPTIONS; else package: what has to be importable. size and batch: the
    published defaults, or what is said in `about`."""

    title: str
    about: str
    build: Callable[[Setting], Driven]
    size: int
    batch: int
    option: str = ""
    needed: tuple[str, ...] = ()
    package: str = ""
    index: str = ""  # the package's name where it is installed from
    voxels: bool = False
    nce: bool = False  # whether it has a PatchNCE loss

    def missing(self) -> str:
        """Why it cannot be driven here; empty where it can. Of packages."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.title}: left out, {self.index} is not installed"
        return ""


def _cut(model: str) -> Callable[[Setting], Driven]:
    return functools.partial(cut_family.build, model=model)


_FAMILY = cut_family.NEEDED
_STEP = "optimize_parameters of its model, published defaults"
_PLAIN = "a plain one: cross entropy and Dice, SGD"

TRAINERS = {
    "cut": Trainer("CUT", _STEP, _cut("cut"), 256, 1, "cut", (*_FAMILY, "models/cut_model.py"), nce=True),
    "cut_cyclegan": Trainer(
        "CUT's repository, its cycle_gan",
        _STEP + " (its train.py does not start this model: data_dependent_initialize takes no batch there, and an "
        "option amp, taken as False here, does not exist)",
        _cut("cycle_gan"),
        256,
        1,
        "cut",
        (*_FAMILY, "models/cycle_gan_model.py"),
    ),
    "cyclegan": Trainer(
        "CycleGAN", _STEP, _cut("cycle_gan"), 256, 1, "cyclegan", (*_FAMILY, "models/cycle_gan_model.py")
    ),
    "munit": Trainer(
        "MUNIT",
        f"dis_update and gen_update of MUNIT_Trainer, {munit.CONFIG}",
        munit.build,
        256,
        1,
        "munit",
        munit.NEEDED,
    ),
    "stargan": Trainer(
        "StarGAN",
        f"{stargan.CRITICS} iterations of Solver.train, in the last of which the generator is updated; published "
        "defaults but the batch, which is 16",
        stargan.build,
        128,
        4,
        "stargan",
        stargan.NEEDED,
    ),
    "dynunet": Trainer("MONAI's DynUNet", _PLAIN, packages.dynunet, 64, 2, package="monai", index="monai", voxels=True),
    "plain_conv_unet": Trainer(
        "nnU-Net's PlainConvUNet",
        _PLAIN,
        packages.plain_conv_unet,
        64,
        2,
        package="dynamic_network_architectures",
        index="dynamic-network-architectures",
        voxels=True,
    ),
    "residual_encoder_unet": Trainer(
        "nnU-Net's ResidualEncoderUNet",
        _PLAIN,
        packages.residual_encoder_unet,
        64,
        2,
        package="dynamic_network_architectures",
        index="dynamic-network-architectures",
        voxels=True,
    ),
    "smp_unet": Trainer(
        "segmentation-models-pytorch's Unet",
        _PLAIN,
        packages.smp_unet,
        256,
        2,
        package="segmentation_models_pytorch",
        index="segmentation-models-pytorch",
    ),
}


def chosen(folders: dict[str, Path | None], with_packages: bool) -> tuple[list[str], list[str]]:
    """(names of the trainers to be driven, a line for each that was asked for and is left out). UsageError where a
    folder is no such checkout."""
    names, left = [], []
    for name, trainer in TRAINERS.items():
        folder = folders.get(trainer.option)
        if folder is not None:
            checkouts.check(f"--{trainer.option}", folder, trainer.title, trainer.needed)
        if folder is not None or (with_packages and trainer.package and not trainer.missing()):
            names.append(name)
        elif with_packages and trainer.package:
            left.append(trainer.missing())
    return names, left
