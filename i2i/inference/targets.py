"""To what an image is translated, with networks that have a choice: MUNIT's style, StarGAN's label."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from i2i.data.grid import draw_grid
from i2i.data.images import UNREADABLE, one_line, read_image, to_tensor
from i2i.data.preprocess import resize
from i2i.errors import UsageError
from i2i.inference.translate import channels_in
from i2i.networks.munit import STYLE_DOWNSAMPLINGS, MunitTranslator, sample_styles
from i2i.networks.stargan import LabelledTranslator, MatchGANGenerator, StarGANGenerator

LABELLED = (StarGANGenerator, MatchGANGenerator)
SEED = 10  # of sampled styles, as published


class Choice(NamedTuple):
    """A network that takes images alone. names: of several results for one image; (): one result for each of many.
    overview: the name of the picture that shows them side by side."""

    network: nn.Module
    names: tuple[str, ...] = ()
    overview: str = ""

    def targets(self, target: Path) -> list[Path]:
        # A name may be of anyone's making, and must not lead out of the folder.
        return [target.with_suffix("") / (re.sub(r"[/\\\x00-\x1f]", "_", name) + ".png") for name in self.names]

    def results(self, target: Path) -> list[Path]:
        """All files that are written for the image whose one result would be `target`; the overview last."""
        return [*self.targets(target), target.with_suffix("") / f"{self.overview}.png"] if self.names else [target]

    def overview_of(self, image: Tensor, results: Tensor) -> bytes:
        """The image and its several results, side by side: a PNG file."""
        titles = ("input", *(name.replace("_", " ") for name in self.names))
        file = io.BytesIO()
        draw_grid(titles, [(image, *results)]).save(file, "PNG")
        return file.getvalue()


def choose(
    network: nn.Module,
    *,
    label: str | None = None,
    style: Path | None = None,
    num_styles: int | None = None,
    seed: int = SEED,
    load_size: int | None = None,
    tile: int | None = None,
) -> Choice:
    """`network` translating to what is asked for, as `i2i translate --help` describes it.

    UsageError: arguments that contradict each other or are not for this network; an image of a style that cannot be
    read.
    """
    if style is not None or num_styles is not None:
        if label is not None:
            raise UsageError("--label is for StarGAN, --style and --num-styles are for MUNIT: leave one out")
        return in_style(network, style, num_styles, seed, load_size)
    if label is not None or not isinstance(network, LABELLED):
        return Choice(in_label(network, label))
    if tile is not None:
        raise UsageError("--tile translates to one label at a time, so --label must name it")
    # Each attribute alone, not all labels that make sense: those double with every attribute, and a published file
    # does not tell which they are.
    names = network.labels.names
    return Choice(LabelledTranslator(network, torch.eye(len(names), device=device_of(network))), names, "labels")


def in_label(network: nn.Module, text: str | None) -> nn.Module:
    """`network` with the label that `text` writes down; as it is if it takes none.

    UsageError: `text` missing, wrong, or not for this network.
    """
    if not isinstance(network, LABELLED):
        if text is not None:
            raise UsageError(f"--label is for generators of StarGAN and MatchGAN; this is a {network.recognised}")
        return network
    if text is None:
        raise UsageError(f"--label is needed: this is a {network.recognised}")
    label = torch.tensor([network.labels.parse(text)], dtype=torch.float32, device=device_of(network))
    translator: Any = LabelledTranslator(network, label)
    translator.recognised = f"{network.recognised}; label {text}"
    translator.found_in = network.found_in
    return translator


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def in_style(
    network: nn.Module, style: Path | None, num_styles: int | None, seed: int, load_size: int | None
) -> Choice:
    """`network` in the style of an image, or in `num_styles` sampled ones: one of the two is given."""
    if style is not None and num_styles is not None:
        raise UsageError("--style is one style, so --num-styles must be left out")
    if not isinstance(network, MunitTranslator):
        raise UsageError(f"--style and --num-styles are for MUNIT's translators; this is a {network.recognised}")
    if style is not None:
        return Choice(network.in_style(style_of(style, network, load_size)))
    if num_styles is None or num_styles < 1:
        raise UsageError(f"--num-styles must be at least 1, got {num_styles}")
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed must be from 0 to 2**63 - 1, got {seed}")
    styles = sample_styles(num_styles, network.target.style_dim, seed).to(network.style.device)
    names = tuple(f"style_{number}" for number in range(1, num_styles + 1))
    return Choice(network.in_style(styles), names, "styles")


@torch.no_grad()
def style_of(path: Path, network: MunitTranslator, load_size: int | None) -> Tensor:
    """(1, style_dim, 1, 1) of the image, resized as the images to translate are."""
    try:
        pixels = read_image(path, channels_in(network.target.enc_style))
    except UNREADABLE as error:
        raise UsageError(f"--style {path}: {one_line(error)}") from None
    if load_size is not None:
        pixels = resize(pixels, load_size, load_size)
    least = 2**STYLE_DOWNSAMPLINGS
    if min(pixels.shape[:2]) < least:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}{' with --load-size' if load_size is not None else ''}"
        raise UsageError(f"--style {path}: must be at least {least} x {least} pixels, got {size}")
    return network.target.encode_style(to_tensor(pixels)[None].to(network.style.device))
