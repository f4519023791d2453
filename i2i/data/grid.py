"""Several images in one picture, side by side under their titles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

GAP = 6  # pixels between pictures
HEADER = 18  # pixels for the titles
WHITE = (255, 255, 255)


def to_image(tensor: Tensor) -> Image.Image:
    """(C, H, W) in [-1, 1], clamped -> 8-bit RGB. One or two channels: the first as grey; four: the first three."""
    tensor = tensor[:3] if tensor.shape[0] >= 3 else tensor[:1].expand(3, -1, -1)
    levels = ((tensor.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def draw_grid(titles: Sequence[str], rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """A title above each column, and below it that column's picture of every row.

    Small pictures are enlarged by a whole factor, so that single pixels stay visible.
    """
    tallest = max(picture.shape[-2] for row in rows for picture in row)
    factor = max(1, 256 // tallest)
    images = [[enlarge(to_image(picture), factor) for picture in row] for row in rows]
    widths = [max(row[c].width for row in images) for c in range(len(titles))]
    heights = [max(image.height for image in row) for row in images]
    size = (sum(widths) + GAP * (len(widths) + 1), HEADER + sum(heights) + GAP * (len(heights) + 1))
    canvas = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(canvas)
    left = GAP
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        draw.text((left, GAP), title, fill=(0, 0, 0))
        top = HEADER + GAP
        for row, height in zip(images, heights, strict=True):
            canvas.paste(row[column], (left, top))
            top += height + GAP
        left += width + GAP
    return canvas


def enlarge(image: Image.Image, factor: int) -> Image.Image:
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
