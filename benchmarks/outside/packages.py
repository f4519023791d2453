"""Networks of packages from the index, with a plain training step: cross entropy and soft Dice, nnU-Net's SGD."""

from __future__ import annotations

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.outside.driven import Driven, Losses, Setting

CLASSES = 3
WIDTHS, STRIDES = (32, 64, 128, 256, 320, 320), (1, 2, 2, 2, 2, 2)  # nnU-Net's of a full-resolution 3-D network


def dynunet(setting: Setting) -> Driven:
    """MONAI's DynUNet with its defaults (instance norm with weights, leaky ReLU), without deep supervision."""
    kind = importlib.import_module("monai.networks.nets").DynUNet
    levels = depth(setting.size)
    net = kind(3, 1, CLASSES, [3] * levels, STRIDES[:levels], STRIDES[1:levels], WIDTHS[:levels])
    return driven(setting, net, 1, 3)


def plain_conv_unet(setting: Setting) -> Driven:
    return nnunet(setting, "PlainConvUNet", n_conv_per_stage=2)


def residual_encoder_unet(setting: Setting) -> Driven:
    return nnunet(setting, "ResidualEncoderUNet", n_blocks_per_stage=(1, 3, 4, 6, 6, 6))


def nnunet(setting: Setting, name: str, **blocks: object) -> Driven:
    """Of dynamic-network-architectures, with what nnU-Net's planner gives a 3-D network."""
    kind = getattr(importlib.import_module("dynamic_network_architectures.architectures.unet"), name)
    levels = depth(setting.size)
    net = kind(
        input_channels=1,
        n_stages=levels,
        features_per_stage=WIDTHS[:levels],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=STRIDES[:levels],
        **{key: value[:levels] if isinstance(value, tuple) else value for key, value in blocks.items()},
        num_classes=CLASSES,
        n_conv_per_stage_decoder=2 if name == "PlainConvUNet" else 1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    return driven(setting, net, 1, 3)


def smp_unet(setting: Setting) -> Driven:
    """segmentation-models-pytorch's Unet as it comes: ResNet-34 without its weights, batch norm."""
    kind = importlib.import_module("segmentation_models_pytorch").Unet
    return driven(setting, kind("resnet34", encoder_weights=None, classes=CLASSES), 3, 2)


def depth(size: int) -> int:
    """Levels of a U-Net for patches of this side: nnU-Net halves while four voxels are left."""
    levels = 1
    while levels < len(WIDTHS) and size % 2 == 0 and size >= 8:
        levels, size = levels + 1, size // 2
    return levels


def driven(setting: Setting, net: nn.Module, channels: int, dimensions: int) -> Driven:
    net.to(setting.device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.99, weight_decay=3e-5, nesterov=True)

    def take(images: Tensor, labels: Tensor) -> Losses:
        optimizer.zero_grad()
        loss = segmentation_loss(net(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 12)
        optimizer.step()
        return {"loss": loss}

    generator = torch.Generator().manual_seed(0)
    sides = [setting.size] * dimensions
    images = torch.randn(setting.batch, channels, *sides, generator=generator).to(setting.device)
    labels = torch.randint(CLASSES, (setting.batch, *sides), generator=generator).to(setting.device)
    return Driven(setting.device, {"net": net}, take, (images, labels))


def segmentation_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy minus the mean soft Dice coefficient of the batch. scores: [B, classes, ...]; labels: [B, ...]."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    wanted = F.one_hot(labels, CLASSES).movedim(-1, 1).to(scores.dtype)
    found = scores.softmax(1)
    over = [0, *range(2, scores.dim())]
    dice = 2 * (found * wanted).sum(over) / (found.sum(over) + wanted.sum(over)).clamp(min=1e-8)
    return F.cross_entropy(scores, labels) - dice.mean()
