"""StarGAN's published code: `Solver.train`, its whole loop, for as many iterations as a turn has.

It has no method for one step, so its loop itself runs: on a loader that gives one batch, without the samples and
checkpoints, which begin at iterations 1,000 and 10,000. Losses are what it gives its log.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import torch

from benchmarks.outside import checkouts
from benchmarks.outside.driven import Driven, Losses, Setting, pictures

NEEDED = ("solver.py", "model.py")
CRITICS = 5  # iterations in a turn: the discriminator is updated in each, the generator in the last
LABELS = 5
# The defaults of its command line, as far as its Solver asks for them.
DEFAULTS = {
    "c_dim": LABELS,
    "c2_dim": 8,
    "g_conv_dim": 64,
    "d_conv_dim": 64,
    "g_repeat_num": 6,
    "d_repeat_num": 6,
    "lambda_cls": 1,
    "lambda_rec": 10,
    "lambda_gp": 10,
    "dataset": "CelebA",
    "num_iters": CRITICS,
    "num_iters_decay": 100000,
    "g_lr": 0.0001,
    "d_lr": 0.0001,
    "n_critic": CRITICS,
    "beta1": 0.5,
    "beta2": 0.999,
    "resume_iters": None,
    "selected_attrs": ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"],
    "test_iters": 200000,
    "use_tensorboard": False,
    "log_dir": "",
    "sample_dir": "",
    "model_save_dir": "",
    "result_dir": "",
    "log_step": CRITICS,
    "sample_step": 1000,
    "model_save_step": 10000,
    "lr_update_step": 1000,
}


def build(setting: Setting) -> Driven:
    checkouts.enter(setting.checkout)
    config = SimpleNamespace(**DEFAULTS, image_size=setting.size, batch_size=setting.batch)
    solver = importlib.import_module("solver").Solver(None, None, config)
    solver.device = setting.device
    solver.G.to(setting.device)
    solver.D.to(setting.device)
    logged: Losses = {}
    solver.use_tensorboard = True
    solver.logger = SimpleNamespace(
        scalar_summary=lambda tag, value, step: logged.update({tag: torch.tensor(value, dtype=torch.float64)})
    )

    def take(images, labels) -> Losses:
        solver.celeba_loader = [(images, labels)]
        solver.train()
        return dict(logged)

    labels = (torch.arange(setting.batch * LABELS).reshape(setting.batch, LABELS) % 3 == 0).float()
    batch = [*pictures(1, setting.batch, setting.size, setting.device), labels]
    return Driven(setting.device, {"G": solver.G, "D": solver.D}, take, batch)
