"""Images in files through a trained network, into files."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2i.data.images import UNREADABLE, one_line, read_image, to_tensor
from i2i.data.preprocess import resize
from i2i.errors import UsageError
from i2i.files import write_atomically
from i2i.inference.outputs import Job, mark, marked, refuse_collisions, refuse_foreign
from i2i.inference.targets import Choice
from i2i.inference.translate import channels_in, least_side, size_multiple, translate

READERS = 2  # threads; decoding and the network take turns on a small machine, and a GPU is fed by more than one


@dataclass(frozen=True)
class FileOptions:
    """How files are read, translated and written: the options of `i2i translate` by their names."""

    load_size: int | None = None  # pixels: images become squares of this side first
    original_size: bool = False  # results get the size that their images had before that
    tile: int | None = None  # pixels: see `translate`
    batch_size: int = 1  # neighbouring images of one size that go together
    bits: int = 8  # per channel of the results; or 16
    precision: str = "float32"


class Outcome(NamedTuple):
    """Of one image. problem: why there is no result; "" where it is written. lost_bits: the image has 16 bits per
    channel and its result 8."""

    source: Path
    problem: str = ""
    lost_bits: bool = False


class Loaded(NamedTuple):
    job: Job
    image: Tensor | None  # (C, H, W) in [-1, 1]; None: unreadable
    problem: str
    deep: bool  # 16 bits per channel
    size: tuple[int, int]  # of the file: height, width


def load(job: Job, channels: int, load_size: int | None) -> Loaded:
    """The picture with `channels` channels, resized to a square of `load_size` pixels as published tests resize."""
    try:
        pixels = read_image(job.source, channels)
        height, width, _ = pixels.shape
        if load_size is not None:
            pixels = resize(pixels, load_size, load_size)
    # a UsageError too: one file of the wrong kind, or too large, does not stop the others
    except (*UNREADABLE, MemoryError) as error:
        return Loaded(job, None, one_line(error), False, (0, 0))
    return Loaded(job, to_tensor(pixels), "", pixels.dtype != np.uint8, (height, width))


def enlarge(image: Tensor, height: int, width: int) -> Tensor:
    """(C, H, W) in [-1, 1] -> (C, height, width), not through 8 bits."""
    return to_tensor(resize(((image + 1) * 127.5).permute(1, 2, 0).numpy(), width, height))


def read_ahead(jobs: Sequence[Job], channels: int, load_size: int | None) -> Iterator[Loaded]:
    """The pictures of `jobs` in order, a few of them read before their turn."""
    pool = ThreadPoolExecutor(READERS)
    try:
        waiting: deque[Future[Loaded]] = deque()
        for job in jobs:
            waiting.append(pool.submit(load, job, channels, load_size))
            if len(waiting) > 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batched(pictures: Iterable[Loaded], batch_size: int) -> Iterator[list[Loaded]]:
    """Neighbours of one size together, at most `batch_size`; what could not be read stands alone."""
    batch: list[Loaded] = []
    for picture in pictures:
        if batch and not (len(batch) < batch_size and same_size(picture, batch[0])):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def same_size(one: Loaded, other: Loaded) -> bool:
    return one.image is not None and other.image is not None and one.image.shape == other.image.shape


def encode_png(image: Tensor, bits: int) -> bytes:
    """(C, H, W) in [-1, 1], clamped, C 1 to 4 -> a PNG file with `bits` (8 or 16) per channel: grey, grey and alpha,
    RGB, RGBA."""
    if image.shape[0] > 4:
        raise UsageError(f"a PNG holds 1 to 4 channels; this network's result has {image.shape[0]}")
    top = 2**bits - 1
    levels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * (top / 2)).round().permute(1, 2, 0).numpy()
    if bits == 16:
        return bytes(deep_png_encoder()(np.ascontiguousarray(levels, dtype=np.uint16)))
    pixels = levels.astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if image.shape[0] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def deep_png_encoder() -> Callable[[np.ndarray], bytes | bytearray]:
    """That of imagecodecs: Pillow has none for 16-bit colour."""
    try:
        from imagecodecs import png_encode
    except ImportError:
        raise UsageError("--bits 16 needs imagecodecs: pip install imagecodecs") from None
    return png_encode


def not_translated(batch: list[Loaded], images: Tensor, sizes: dict[str, int], error: Exception) -> UsageError:
    """What to tell of torch's `error` with these images."""
    which = f"{batch[0].job.source}: {images.shape[-1]} x {images.shape[-2]} pixels, {len(batch)} at a time, "
    if isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error).lower():
        return UsageError(which + "are too large for the device's memory; try --tile 512, or a smaller --batch-size")
    takes = f"which takes sides that are multiples of {sizes['multiple']}, at least {sizes['least']}"
    return UsageError(which + f"cannot be translated by this network, {takes} ({one_line(error)})")


def mark_results(jobs: Sequence[Job], choice: Choice, output: Path, made_with: Sequence[Any]) -> dict[Path, str]:
    """What the results of every job are marked with, by its target: what they are of, and `made_with`: by which
    weights, in which style or with which label. UsageError where files of others are in the way."""
    marks = {job.target: mark(job.source, *made_with) for job in jobs}
    planned = [(target, job.source) for job in jobs for target in choice.results(job.target)]
    own = {target: marks[job.target] for job in jobs for target in choice.results(job.target)}
    refuse_collisions(planned, output)
    refuse_foreign((target, source, own[target]) for target, source in planned)
    return marks


def translate_files(
    choice: Choice, jobs: Sequence[Job], marks: Mapping[Path, str], options: FileOptions
) -> Iterator[Outcome]:
    """Translate the images of `jobs` in order. Yields what became of each, once its results are written.

    `marks`: see `mark_results`. UsageError: the network cannot translate such images, or not in tiles, or the device
    has too little memory for them.
    """
    network = choice.network
    multiple = size_multiple(network)
    sizes = {"multiple": multiple, "least": least_side(network, multiple)}
    for batch in batched(read_ahead(jobs, channels_in(network), options.load_size), options.batch_size):
        if batch[0].image is None:
            yield Outcome(batch[0].job.source, batch[0].problem)
            continue
        torch.manual_seed(0)  # of dropout: a result does not depend on what was translated before
        images = torch.stack([picture.image for picture in batch if picture.image is not None])
        try:
            results = translate(network, images, tile=options.tile, precision=options.precision, **sizes)
        except UsageError as error:
            if options.tile is None:
                raise
            raise UsageError(f"--tile {options.tile}: {error}") from None
        except (RuntimeError, ValueError) as error:  # torch.OutOfMemoryError is a RuntimeError
            raise not_translated(batch, images, sizes, error) from error
        for picture, image, own in zip(batch, images, [results] if choice.names else results.split(1), strict=True):
            if own.isfinite().all():
                write_results(choice, picture, image, own, marks[picture.job.target], options)
                yield Outcome(picture.job.source, lost_bits=picture.deep and options.bits == 8)
            else:
                yield Outcome(picture.job.source, "the result is not finite, as that of float16 may be")


def write_results(
    choice: Choice, picture: Loaded, image: Tensor, results: Tensor, own: str, options: FileOptions
) -> None:
    """The results of one image, (1, C, H, W) or one for each of `choice.names`, with their mark `own`."""
    targets = choice.targets(picture.job.target) if choice.names else [picture.job.target]
    for target, result in zip(targets, results, strict=True):
        if options.original_size:
            result = enlarge(result, *picture.size)
        write_atomically(target, marked(encode_png(result, options.bits), own))
    if choice.names:
        write_atomically(choice.results(picture.job.target)[-1], marked(choice.overview_of(image, results), own))
