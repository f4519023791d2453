"""Miniature checkouts and a package, in the layout of the published ones, with networks of a few channels."""

from __future__ import annotations

from pathlib import Path

FAMILY = {
    "options/base_options.py": "# --gpu_ids\n",
    "options/train_options.py": """
import argparse

class TrainOptions:
    def parse(self):
        parser = argparse.ArgumentParser()
        for name in ("dataroot", "checkpoints_dir", "model", "gpu_ids"):
            parser.add_argument("--" + name, required=True)
        for name in ("batch_size", "load_size", "crop_size"):
            parser.add_argument("--" + name, type=int, required=True)
        return parser.parse_args()
""",
    "models/base_model.py": "",
    "models/networks.py": "import dominate.tags\nfrom torchvision import transforms\n",
    "models/cut_model.py": "",
    "models/cycle_gan_model.py": "",
    "models/__init__.py": """
import numpy
import torch
from torch import nn
from . import networks

def create_model(opt):
    assert opt.gpu_ids == "-1" and opt.device.type == "cpu"
    return Model(opt)

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.scale * (x ** 2).mean()

class Model:
    def __init__(self, opt):
        self.opt, self.model_names, self.loss_names = opt, ["G", "F"], ["G", "D"]
        norm = nn.InstanceNorm2d(4)
        self.netG = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), norm, nn.ReLU(True), nn.Conv2d(4, 3, 1))
        self.criterion, self.optimizers = Scale(), []
        self.optimizers.append(torch.optim.Adam(self.netG.parameters(), lr=2e-4, betas=(0.5, 0.999)))

    def data_dependent_initialize(self, data):
        self.netF = nn.Linear(data["A"].shape[1], 2)
        self.optimizers.append(torch.optim.Adam(self.netF.parameters(), lr=2e-4))

    def setup(self, opt):
        print("networks")

    def set_input(self, data):
        self.real_A, self.real_B = data["A"], data["B"]

    def optimize_parameters(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        fake = self.netG(self.real_A)
        places = numpy.random.permutation(fake.shape[2] * fake.shape[3])[:16]
        rows = self.netF(fake.flatten(2).transpose(1, 2)[:, places])
        self.loss_D = self.criterion(rows)
        self.loss_G = self.loss_D + (fake - self.real_B).abs().mean()
        self.loss_G.backward()
        for optimizer in self.optimizers:
            optimizer.step()
""",
}

MUNIT = {
    "utils.py": "from torch.utils.serialization import load_lua\n",
    "networks.py": "",
    "configs/edges2handbags_folder.yaml": "lr: 0.0001\nvgg_w: 1\n",
    "trainer.py": """
import torch
from torch import nn
import utils

class Gen(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)

    def encode(self, x):
        return self.enc(x)

class Dis(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3)

    def forward(self, x):
        return self.conv(x)

class MUNIT_Trainer(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config["vgg_w"] == 0 and config["lr"] == 0.0001
        self.gen_a, self.gen_b, self.dis_a, self.dis_b = Gen(), Gen(), Dis(), Dis()
        self.noise = torch.randn(2, 1, 1, 1).cuda()

    def dis_update(self, a, b, config):
        self.loss_dis_total = self.dis_a.forward(a).mean() + torch.randn(a.shape[0]).cuda().mean()
        self.loss_dis_total.backward()

    def gen_update(self, a, b, config):
        self.loss_gen_total, self.loss_gen_vgg_a = self.gen_a.encode(a).mean(), 0
        self.loss_gen_total.backward()
""",
}

STARGAN = {
    "model.py": "",
    "solver.py": """
import torch
from torch import nn
from torchvision.utils import save_image

class Solver:
    def __init__(self, celeba_loader, rafd_loader, config):
        self.config, self.use_tensorboard = config, config.use_tensorboard
        assert not self.use_tensorboard and config.image_size == 64 and config.batch_size == 1
        self.G, self.D = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 5, 3)

    def train(self):
        for i in range(self.config.num_iters):
            images, labels = next(iter(self.celeba_loader))
            loss = (self.D(self.G(images)).mean((2, 3)) - labels).square().mean()
            loss.backward()
            if self.use_tensorboard and (i + 1) % self.config.log_step == 0:
                self.logger.scalar_summary("D/loss", loss.item(), i + 1)
""",
}

MONAI = {
    "monai/__init__.py": "",
    "monai/networks/__init__.py": "",
    "monai/networks/nets.py": """
from torch import nn

class DynUNet(nn.Sequential):
    def __init__(self, dimensions, channels, classes, kernels, strides, upsampled, widths):
        assert dimensions == 3 and len(kernels) == len(strides) == len(widths) == len(upsampled) + 1
        super().__init__(nn.Conv3d(channels, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(),
                         nn.Conv3d(4, classes, 1))
""",
}


def lay_out(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
