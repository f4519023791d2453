"""CUT's and CycleGAN's published code: a parser of options, `create_model`, and `optimize_parameters` as the step."""

from __future__ import annotations

import importlib
import inspect
import shlex
import sys
import tempfile
from pathlib import Path

from torch import nn

from benchmarks.outside import checkouts
from benchmarks.outside.driven import Driven, Losses, Setting, pictures

NEEDED = ("options/train_options.py", "models/__init__.py", "models/base_model.py", "models/networks.py")


def build(setting: Setting, model: str, options: str = "") -> Driven:
    """`model`: as the option --model names it. `options`: more of theirs, as a command line. All others are the
    published defaults."""
    checkouts.enter(setting.checkout)
    trainer = importlib.import_module("models").create_model(parse(setting, f"--model {model} {options}"))
    real_a, real_b = pictures(2, setting.batch, setting.size, setting.device)
    given = {"A": real_a, "B": real_b, "A_paths": [], "B_paths": []}
    if hasattr(trainer, "data_dependent_initialize"):  # CUT's F has its layers from the first maps
        wanted = inspect.signature(trainer.data_dependent_initialize).parameters
        trainer.data_dependent_initialize(*[given] * len(wanted))  # CUT's cycle_gan wants none
    trainer.setup(trainer.opt)
    if hasattr(trainer, "parallelize"):
        trainer.parallelize()

    def take(a, b) -> Losses:
        trainer.set_input(given | {"A": a, "B": b})
        trainer.optimize_parameters()
        return {name: getattr(trainer, f"loss_{name}") for name in trainer.loss_names}

    networks = {name: getattr(trainer, f"net{name}") for name in trainer.model_names}
    held = [m for value in vars(trainer).values() for m in (value if isinstance(value, list) else [value])]
    others = [m for m in held if isinstance(m, nn.Module) and m not in networks.values()]
    driven = Driven(setting.device, networks, take, (real_a, real_b), others)
    driven.trainer = trainer
    return driven


def parse(setting: Setting, options: str):
    """Their options. Their parser reads sys.argv, several times, and writes what it has read into a folder."""
    words = ["train.py", "--batch_size", str(setting.batch), *shlex.split(options)]
    words += ["--load_size", str(setting.size), "--crop_size", str(setting.size)]
    if "--gpu_ids" in Path(setting.checkout, "options/base_options.py").read_text():
        words += ["--gpu_ids", "0" if setting.device.type == "cuda" else "-1"]
    before = sys.argv
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        sys.argv = [*words, "--dataroot", folder, "--checkpoints_dir", folder]
        try:
            found = importlib.import_module("options.train_options").TrainOptions().parse()
        finally:
            sys.argv = before
    found.amp = getattr(found, "amp", False)  # CUT's cycle_gan asks for it, and its parser has no such option
    found.device = setting.device  # where later checkouts of CycleGAN look for it
    return found
