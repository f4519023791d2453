"""Images through a trained network, at any size; and `i2i translate`, which does it with files."""

from __future__ import annotations

import argparse
import io
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from i2i.config import PRECISIONS
from i2i.data.images import UNREADABLE, one_line, read_image, to_tensor
from i2i.data.preprocess import resize
from i2i.devices import check_impl, choose_device
from i2i.errors import UsageError
from i2i.files import write_atomically
from i2i.inference import targets as variants
from i2i.inference import weights
from i2i.inference.outputs import Job, find_jobs, mark, marked, refuse_collisions, refuse_foreign
from i2i.inference.tiles import translate_tiled
from i2i.training.progress import ProgressBar

HELP = "translate images with a trained network"
LARGEST = 1024  # multiple that is tried: of unet_1024
ENOUGH = 64  # pixels, of which every network here takes its multiples
READERS = 2  # threads; decoding and the network take turns on a small machine, and a GPU is fed by more than one


@torch.no_grad()
def translate(
    network: nn.Module,
    images: Tensor,
    *,
    tile: int | None = None,
    precision: str = "float32",
    multiple: int | None = None,
    least: int | None = None,
) -> Tensor:
    """`images` through `network`, whatever their size: sides that it cannot take are extended at the bottom and at the
    right by reflection (by repetition of the border where the image is too small for that), and cut off again.

    The network runs in the mode that it is in; see `prepare`.

    Args:
        network: (N, C, H, W) -> (N, C', H, W).
        images: (N, C, H, W) in [-1, 1], on any device, H and W at least 1.
        tile: side in pixels of the tiles to go through in, for images too large for memory (see `translate_tiled`).
        precision: "float32", "bfloat16" or "float16", of convolutions and maps.
        multiple: of what the sides must be; `size_multiple(network)` if not given.
        least: what the sides must be at least; `least_side(network, multiple)` if not given.

    Returns:
        (N, C', H, W) float32 on the device of `images`.

    Raises:
        UsageError: the network takes no such images, or cannot be run in tiles.
    """
    if multiple is None:
        multiple = size_multiple(network)
    if least is None:
        least = least_side(network, multiple)
    weight = next(network.parameters())
    height, width = images.shape[-2:]
    x = _extend(images, *(-(-max(side, least) // multiple) * multiple for side in (height, width)))
    with torch.autocast(weight.device.type, getattr(torch, precision), enabled=precision != "float32"):
        if tile is None:
            y = network(x.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last))
        else:
            y = torch.cat([translate_tiled(network, image[None], tile) for image in x.to("cpu", weight.dtype)])
    return y[..., :height, :width].float().to(images.device)


def prepare(network: nn.Module, evaluate: bool) -> bool:
    """Put `network` into the mode to translate in. True if the images of a batch then influence each other's result.

    As published, that is training mode: batch norm with the statistics of the image itself, dropout on (pix2pix was
    published with both). `evaluate` switches to trained statistics and no dropout. Networks with instance norm and
    without dropout are the same in both.
    """
    network.train(not evaluate)
    # Dropout: not the images, but the random numbers that each gets, would depend on the others.
    mixing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return not evaluate and any(isinstance(module, mixing) for module in network.modules())


def channels_in(network: nn.Module) -> int:
    """Channels of the images that `network` takes: those of its first convolution, if it does not say otherwise."""
    first = next((p.shape[1] for p in network.parameters() if p.dim() == 4), None)
    channels = getattr(network, "input_nc", first)
    if channels is None:
        raise UsageError(f"{type(network).__name__} takes no images: it has no convolution")
    return channels


def refuse_judge(network: nn.Module) -> None:
    """UsageError for a discriminator: the scores of one that judges pixels have the size of an image, and are none."""
    if type(network).__name__.endswith("Discriminator"):
        raise UsageError(f"{network.found_in}: is a {network.recognised}, which judges images and translates none")


@torch.no_grad()
def size_multiple(network: nn.Module) -> int:
    """The smallest power of 2 that sides must be multiples of, found by trying: 4 for a ResNet, 256 for unet_256."""
    weight, channels = next(network.parameters()), channels_in(network)
    power = 1
    while power <= LARGEST:
        # an odd multiple, so that no higher power divides it, of enough pixels for what looks far
        side = power * (ENOUGH // (2 * power) * 2 + 1)
        reason = _refusal(network, weight.new_zeros(1, channels, side, side))
        if not reason:
            return power
        power *= 2
    raise UsageError(f"{type(network).__name__} does not translate images of one size into the same size: {reason}")


@torch.no_grad()
def least_side(network: nn.Module, multiple: int) -> int:
    """The smallest multiple of `multiple`, 8 or more, that sides can be, found by trying in the mode that the network
    is in: 8 for a ResNet, whose reflection padding needs 2 pixels of its coarsest map; 32 for DiscoGAN's generator as
    published, whose batch norm does, and 64 for the one with extra layers."""
    weight, channels = next(network.parameters()), channels_in(network)
    first = -(-8 // multiple) * multiple
    for side in range(first, max(first, 2 * ENOUGH) + 1, multiple):
        if not _refusal(network, weight.new_zeros(1, channels, side, side)):
            return side
    return first


def _refusal(network: nn.Module, images: Tensor) -> str:
    """Why `network` does not translate `images`; "" if it does."""
    try:
        y = network(images)
    except (RuntimeError, ValueError, TypeError) as error:  # TypeError: it wants more than an image
        return one_line(error)
    if not isinstance(y, Tensor):
        return "it gives no image"
    return "" if y.shape[-2:] == images.shape[-2:] else "it changes their size"


def _extend(x: Tensor, height: int, width: int) -> Tensor:
    below, right = height - x.shape[-2], width - x.shape[-1]
    if not below and not right:
        return x
    possible = below < x.shape[-2] and right < x.shape[-1]
    return F.pad(x, (0, right, 0, below), mode="reflect" if possible else "replicate")


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


def read_ahead(jobs: list[Job], channels: int, load_size: int | None) -> Iterator[Loaded]:
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
        fits = batch and picture.image is not None and batch[0].image is not None
        if batch and not (fits and len(batch) < batch_size and picture.image.shape == batch[0].image.shape):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def encode_png(image: Tensor, bits: int) -> bytes:
    """(C, H, W) in [-1, 1], clamped, C 1 to 4 -> a PNG file with `bits` (8 or 16) per channel: grey, grey and alpha,
    RGB, RGBA."""
    if image.shape[0] > 4:
        raise UsageError(f"a PNG holds 1 to 4 channels; this network's result has {image.shape[0]}")
    top = 2**bits - 1
    levels = ((image.detach().cpu().float().clamp(-1, 1) + 1) * (top / 2)).round().permute(1, 2, 0).numpy()
    if bits == 16:
        return deep_png_encoder()(np.ascontiguousarray(levels, dtype=np.uint16))
    pixels = levels.astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if image.shape[0] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def deep_png_encoder() -> Callable[[np.ndarray], bytes]:
    """That of imagecodecs: Pillow has none for 16-bit colour."""
    try:
        from imagecodecs import png_encode
    except ImportError:
        raise UsageError("--bits 16 needs imagecodecs: pip install imagecodecs") from None
    return png_encode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    weights.add_arguments(parser)
    add(
        "--input",
        type=Path,
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders of images, or files that list them",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="results go here, <name>.png in the same subfolders")
    variants.add_arguments(parser)
    add("--load-size", type=int, metavar="N", help="resize images to N x N first, as the published tests do")
    add("--size", choices=("network", "original"), default="network", help="of results, with --load-size")
    add("--tile", type=int, metavar="N", help="in tiles of N pixels, for images too large for memory; same result")
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="neighbouring images of one size go together (default: 1)",
    )
    add(
        "--eval",
        action="store_true",
        help="batch norm with its trained statistics, no dropout (default, as published: the image's own statistics, "
        "dropout on, one image at a time; no difference for networks that have neither)",
    )
    add("--bits", type=int, choices=(8, 16), default=8, help="per channel of the results (default: 8)")
    add("--precision", choices=PRECISIONS, default="float32", help="of convolutions and maps (default: float32)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    add("--impl", default="auto", help="implementation of the fused operators (default: auto)")


def run(args: argparse.Namespace) -> int:
    """0: all images are translated; 1: some could not be read, and were named; 130: interrupted."""
    for name in ("load_size", "tile", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.size == "original" and args.load_size is None:
        raise UsageError("--size original has no meaning without --load-size: results have the size of their images")
    if args.bits == 16:
        deep_png_encoder()  # or say now that it is missing
    jobs = find_jobs(args.input, args.output)
    check_impl(args.impl)
    network = weights.load(args.weights, network=args.network, impl=args.impl)
    network.to(choose_device(args.device), memory_format=torch.channels_last)
    print(f"{network.found_in}: {network.recognised}", file=sys.stderr)
    choice = variants.choose(network, args)
    refuse_judge(network)
    marks = marks_of(jobs, choice, args)
    alone = prepare(choice.network, args.eval)
    if alone and args.batch_size > 1:
        print("batch norm or dropout as published: one image at a time (--eval switches them off)", file=sys.stderr)
    done = Progress(len(jobs))
    try:
        _translate_files(choice, jobs, marks, args, done, batch_size=1 if alone or choice.names else args.batch_size)
    except KeyboardInterrupt:
        done.tell(f"interrupted: {done.written} of {len(jobs)} images are in {args.output}")
        return 130
    finally:
        done.bar.close()
    print(f"{done.written} of {len(jobs)} images translated into {args.output}", file=sys.stderr)
    return 0 if done.written == len(jobs) else 1


def marks_of(jobs: list[Job], choice: variants.Choice, args: argparse.Namespace) -> dict[Path, str]:
    """What each image's results are marked with: what they are of, by which weights, in which style or with which
    label. UsageError where files of others are in the way."""
    seed = args.seed if args.num_styles else None
    made = (args.weights, args.network, args.label, args.style, seed)
    marks = {job.target: mark(job.source, *made) for job in jobs}
    planned = [(target, job.source) for job in jobs for target in choice.results(job.target)]
    own = {target: marks[job.target] for job in jobs for target in choice.results(job.target)}
    refuse_collisions(planned, args.output)
    refuse_foreign((target, source, own[target]) for target, source in planned)
    return marks


def not_translated(batch: list[Loaded], images: Tensor, sizes: dict[str, int], error: Exception) -> UsageError:
    """What to tell of torch's `error` with these images."""
    which = f"{batch[0].job.source}: {images.shape[-1]} x {images.shape[-2]} pixels, {len(batch)} at a time, "
    if isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error).lower():
        return UsageError(which + "are too large for the device's memory; try --tile 512, or a smaller --batch-size")
    takes = f"which takes sides that are multiples of {sizes['multiple']}, at least {sizes['least']}"
    return UsageError(which + f"cannot be translated by this network, {takes} ({one_line(error)})")


class Progress:
    """The bar, and what was done by the time of an interruption."""

    def __init__(self, jobs: int):
        self.bar = ProgressBar(0, jobs, 1)
        self.seen = self.written = 0
        self.told = False  # that bits are lost

    def tell(self, text: str) -> None:
        self.bar.close()
        print(text, file=sys.stderr)


def _translate_files(
    choice: variants.Choice,
    jobs: list[Job],
    marks: dict[Path, str],
    args: argparse.Namespace,
    done: Progress,
    batch_size: int,
) -> None:
    network = choice.network
    multiple = size_multiple(network)
    sizes = {"multiple": multiple, "least": least_side(network, multiple)}
    for batch in batched(read_ahead(jobs, channels_in(network), args.load_size), batch_size):
        if batch[0].image is None:
            done.tell(f"skipped: {batch[0].job.source} ({batch[0].problem})")
        else:
            torch.manual_seed(0)  # of dropout: a result does not depend on what was translated before
            images = torch.stack([picture.image for picture in batch])
            try:
                results = translate(network, images, tile=args.tile, precision=args.precision, **sizes)
            except UsageError as error:
                if args.tile is None:
                    raise
                raise UsageError(f"--tile {args.tile}: {error}") from None
            except (RuntimeError, ValueError) as error:  # torch.OutOfMemoryError is a RuntimeError
                raise not_translated(batch, images, sizes, error) from error
            for picture, image, own in zip(batch, images, [results] if choice.names else results.split(1), strict=True):
                if own.isfinite().all():
                    _write(choice, picture, image, own, marks[picture.job.target], args, done)
                    done.written += 1
                else:
                    done.tell(f"skipped: {picture.job.source} (the result is not finite, as that of float16 may be)")
        done.seen += len(batch)
        done.bar.show(done.seen, {})


def _write(
    choice: variants.Choice,
    picture: Loaded,
    image: Tensor,
    results: Tensor,
    own: str,
    args: argparse.Namespace,
    done: Progress,
) -> None:
    """The results of one image, (1, C, H, W) or one for each of `choice.names`, with their mark `own`."""
    if picture.deep and args.bits == 8 and not done.told:
        done.told = True
        done.tell("images of 16 bits become results of 8 bits; --bits 16 keeps them")
    targets = choice.targets(picture.job.target) if choice.names else [picture.job.target]
    for target, result in zip(targets, results, strict=True):
        if args.size == "original":
            result = enlarge(result, *picture.size)
        write_atomically(target, marked(encode_png(result, args.bits), own))
    if choice.names:
        write_atomically(choice.results(picture.job.target)[-1], marked(choice.overview_of(image, results), own))
