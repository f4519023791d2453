"""MUNIT's published code: `MUNIT_Trainer` with one of its configurations; its step is dis_update and gen_update."""

from __future__ import annotations

import importlib
from pathlib import Path

import yaml

from benchmarks.outside import checkouts
from benchmarks.outside.driven import Driven, Losses, Setting, pictures

CONFIG = "configs/edges2handbags_folder.yaml"  # the one of its README; without the perceptual loss, whose weights differ
NEEDED = ("trainer.py", "networks.py", "utils.py", CONFIG)


def build(setting: Setting) -> Driven:
    checkouts.enter(setting.checkout)
    if setting.device.type == "cpu":
        checkouts.without_cuda_calls()
    config = yaml.safe_load(Path(setting.checkout, CONFIG).read_text()) | {"vgg_w": 0, "batch_size": setting.batch}
    trainer = importlib.import_module("trainer").MUNIT_Trainer(config).to(setting.device)

    def take(a, b) -> Losses:
        trainer.dis_update(a, b, config)
        trainer.gen_update(a, b, config)
        return {name: trainer.__dict__[f"loss_{name}"] for name in ("dis_total", "gen_total")} | parts(trainer)

    networks = {name: getattr(trainer, name) for name in ("gen_a", "gen_b", "dis_a", "dis_b")}
    batch = pictures(2, setting.batch, setting.size, setting.device)
    return Driven(setting.device, networks, take, batch)


def parts(trainer) -> Losses:
    """Those that its log shows, but the weights that are 0."""
    found = {k.removeprefix("loss_"): v for k, v in vars(trainer).items() if k.startswith("loss_")}
    return {name: value for name, value in found.items() if hasattr(value, "detach")}
