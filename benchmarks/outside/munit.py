"""MUNIT's published code: `MUNIT_Trainer` with one of its configurations; its step is dis_update and gen_update."""

from __future__ import annotations

import importlib
from pathlib import Path

import yaml
from torch import Tensor

from benchmarks.outside import checkouts
from benchmarks.outside.driven import Driven, Losses, Setting, pictures

CONFIG = "configs/edges2handbags_folder.yaml"  # of its README; without perceptual loss, for which it has no weights
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
        found = {name.removeprefix("loss_"): value for name, value in vars(trainer).items() if name[:5] == "loss_"}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}  # else its weight is 0

    networks = {name: getattr(trainer, name) for name in ("gen_a", "gen_b", "dis_a", "dis_b")}
    batch = pictures(2, setting.batch, setting.size, setting.device)
    generators = (trainer.gen_a, trainer.gen_b)
    called = [part for gen in generators for part in gen.children()] + [trainer.dis_a, trainer.dis_b]
    return Driven(setting.device, networks, take, batch, called=called)
