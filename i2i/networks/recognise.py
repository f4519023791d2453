"""From the keys and shapes of a state dict to the network it belongs to: CUT, SinCUT, CycleGAN and pix2pix;
and the list of all recognisers, those of other families from their own files.

A recogniser takes (state, impl, config) and returns (network, one sentence), or None where the state is of another
family. `config` is what a checkpoint of ours says beside its weights, {} for a published file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from i2i.errors import UsageError
from i2i.networks.discogan import discogan_discriminator, discogan_generator
from i2i.networks.munit import munit_discriminator, munit_generator, munit_translator
from i2i.networks.opgan import siamese_network
from i2i.networks.patch_features import PatchFeatureNetwork
from i2i.networks.patchgan import PatchDiscriminator, PixelDiscriminator
from i2i.networks.resnet import ResnetGenerator
from i2i.networks.stargan import stargan_discriminator, stargan_generator
from i2i.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from i2i.networks.unet import UnetGenerator

State = Mapping[str, Tensor]
Recogniser = Callable[[State, str, Mapping[str, Any]], tuple[nn.Module, str] | None]


def resnet_generator(state: State, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    blocks = _numbers(state, r"model\.(\d+)\.conv_block\.")
    if "model.1.weight" not in state or not blocks:
        return None
    ngf, input_nc = state["model.1.weight"].shape[:2]
    last = _numbers(state, r"model\.(\d+)\.weight")[-1]
    output_nc = state[f"model.{last}.weight"].shape[0]
    first = f"model.{blocks[0]}.conv_block"
    dropout = f"{first}.6.weight" in state and state[f"{first}.6.weight"].dim() == 4  # else a batch norm's
    down = "model.7.filt" in state
    up = any(key.endswith(".filt") and int(key.split(".")[1]) > blocks[-1] for key in state)
    norm = _norm(state, "model.1", "model.2")
    options = {"norm": norm, "dropout": dropout, "antialias_down": down, "antialias_up": up}
    net = ResnetGenerator(input_nc, output_nc, ngf, len(blocks), **options, impl=impl)
    parts = [f"ResNet generator, {len(blocks)} blocks, width {ngf}", _named(norm), *(["dropout"] if dropout else [])]
    antialiased = " and ".join(["down"] * down + ["up"] * up)
    parts += [f"antialiased {antialiased}"] if antialiased else []
    parts.append(f"{input_nc} -> {output_nc} channels")
    return net, f"{', '.join(parts)} ({'CUT' if antialiased else 'CycleGAN, pix2pix'})"


def unet_generator(state: State, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    if "model.model.0.weight" not in state or "model.model.3.weight" not in state:
        return None
    ngf, input_nc = state["model.model.0.weight"].shape[:2]
    output_nc = state["model.model.3.weight"].shape[1]
    downs = max(key.count("model.") for key in state) - 1
    norm = _norm(state, "model.model.1.model.1", "model.model.1.model.2")
    # Dropout has no key. Published: on in pix2pix, whose U-Nets have batch norm, off in CycleGAN.
    dropout = bool(config.get("dropout", norm == "batch"))
    net = UnetGenerator(input_nc, output_nc, ngf, downs, norm=norm, dropout=dropout, impl=impl)
    parts = [f"U-Net generator, {downs} levels, width {ngf}", _named(norm), *(["dropout"] if dropout else [])]
    return net, f"{', '.join(parts)}, {input_nc} -> {output_nc} channels (pix2pix, CycleGAN)"


def patch_discriminator(state: State, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    if "model.0.weight" not in state or state["model.0.weight"].dim() != 4:
        return None
    convolutions = [n for n in _numbers(state, r"model\.(\d+)\.weight") if state[f"model.{n}.weight"].dim() == 4]
    if len(convolutions) < 3:
        return None
    ndf, input_nc = state["model.0.weight"].shape[:2]
    n_layers = len(convolutions) - 2
    antialias = "model.2.filt" in state
    norm = _norm(state, f"model.{convolutions[1]}", f"model.{convolutions[1] + 1}")
    net = PatchDiscriminator(input_nc, ndf, n_layers, norm=norm, antialias=antialias, impl=impl)
    parts = [f"PatchGAN discriminator, {n_layers} layers, width {ndf}", _named(norm)]
    parts += ["antialiased"] if antialias else []
    return net, f"{', '.join(parts)}, {input_nc} channels ({'CUT' if antialias else 'CycleGAN, pix2pix'})"


def pixel_discriminator(state: State, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    if not {"net.0.weight", "net.2.weight", "net.5.weight"} <= set(state):
        return None
    ndf, input_nc = state["net.0.weight"].shape[:2]
    norm = _norm(state, "net.2", "net.3")
    net = PixelDiscriminator(input_nc, ndf, norm=norm, impl=impl)
    return net, f"Pixel discriminator, width {ndf}, {_named(norm)}, {input_nc} channels (CycleGAN, pix2pix)"


def patch_features(state: State, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    layers = _numbers(state, r"mlp_(\d+)\.0\.weight")
    if not layers:
        return None
    channels = [state[f"mlp_{i}.0.weight"].shape[1] for i in layers]
    width = state["mlp_0.0.weight"].shape[0]
    listed = ", ".join(map(str, channels))
    return PatchFeatureNetwork(channels, width, impl), f"Feature network, MLPs {listed} -> {width} channels (CUT)"


def stylegan2_generator(state: State, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    if "encoder.convs.1.0.weight" not in state:
        return None
    width, input_nc = state["encoder.convs.1.0.weight"].shape[:2]
    halvings = _numbers(state, r"encoder\.convs\.(\d+)\.skip\.")
    channels = [width, *(state[f"encoder.convs.{i}.skip.1.weight"].shape[0] for i in halvings)]
    blocks = 2 * (len(_numbers(state, r"encoder\.convs\.(\d+)\.conv1\.")) - len(halvings))
    last = _numbers(state, r"decoder\.convs\.(\d+)\.")[-1]
    output_nc = state[f"decoder.convs.{last}.0.weight"].shape[0]
    net = StyleGAN2Generator(input_nc, output_nc, channels, blocks, impl=impl)
    listed = ", ".join(map(str, channels))
    return net, f"StyleGAN2 generator, {blocks} blocks, widths {listed}, {input_nc} -> {output_nc} channels (SinCUT)"


def stylegan2_discriminator(state: State, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    if not {"convs.0.0.weight", "final_conv.0.weight"} <= set(state):
        return None
    width, input_nc = state["convs.0.0.weight"].shape[:2]
    blocks = _numbers(state, r"convs\.(\d+)\.skip\.")
    net = StyleGAN2Discriminator(input_nc, [width, *(state[f"convs.{i}.skip.1.weight"].shape[0] for i in blocks)])
    return net, f"StyleGAN2 discriminator of {net.size} x {net.size}, width {width}, {input_nc} channels (SinCUT)"


RECOGNISERS: list[Recogniser] = [
    resnet_generator,
    unet_generator,
    patch_discriminator,
    pixel_discriminator,
    patch_features,
    stylegan2_generator,
    stylegan2_discriminator,
    munit_translator,
    munit_generator,
    munit_discriminator,
    stargan_generator,
    stargan_discriminator,
    discogan_generator,
    discogan_discriminator,
    siamese_network,
]


def _numbers(state: State, pattern: str) -> list[int]:
    """What the group of `pattern` holds at the start of keys, each once, ascending."""
    return sorted({int(match[1]) for key in state if (match := re.match(pattern, key))})


def _norm(state: State, convolution: str, norm: str) -> str:
    """The norm behind a convolution, from their keys: a published convolution has a bias before instance norm only."""
    biased, affine = f"{convolution}.bias" in state, f"{norm}.weight" in state
    if biased and affine:
        raise UsageError(
            f"{norm}.weight beside {convolution}.bias means instance norms with weights of their own, which the "
            "published code had only in early 2017; such networks are not supported"
        )
    return "instance" if biased else "batch" if affine else "none"


def _named(norm: str) -> str:
    return "no norm" if norm == "none" else f"{norm} norm"
