"""`i2i translate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import kernels
from i2i.cli.arguments import add_label, add_weights
from i2i.config import PRECISIONS
from i2i.devices import check_impl, choose_device, move_network
from i2i.errors import UsageError
from i2i.inference import weights
from i2i.inference.outputs import find_jobs
from i2i.inference.targets import SEED, choose
from i2i.inference.translate import prepare, refuse_judge
from i2i.inference.translate_files import FileOptions, Outcome, deep_png_encoder, mark_results, translate_files
from i2i.training.progress import ProgressBar

HELP = "translate images with a trained network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_weights(parser)
    add(
        "--input",
        type=Path,
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders of images, or files that list them",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="results go here, <name>.png in the same subfolders")
    add_targets(parser)
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


def add_targets(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--style", type=Path, metavar="IMAGE", help="MUNIT: translate in the style of this image of the other domain")
    add(
        "--num-styles",
        type=int,
        metavar="N",
        help="MUNIT: in N sampled styles, <name>/style_1.png, ..., side by side in <name>/styles.png "
        "(default, without --style: one result, in the middle of all styles)",
    )
    add("--seed", type=int, default=SEED, help=f"of the sampled styles (default, as published: {SEED})")
    add_label(
        parser,
        "each attribute alone, <name>/<attribute>.png, ..., side by side in <name>/labels.png, one image at a time",
    )


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
    device = choose_device(args.device)
    form = kernels.preferred_memory_format(device, getattr(torch, args.precision), training=False)
    move_network(network, device, form)
    print(f"{network.found_in}: {network.recognised}", file=sys.stderr)
    choice = choose(
        network,
        label=args.label,
        style=args.style,
        num_styles=args.num_styles,
        seed=args.seed,
        load_size=args.load_size,
        tile=args.tile,
    )
    refuse_judge(network)
    seed = args.seed if args.num_styles else None
    marks = mark_results(jobs, choice, args.output, (args.weights, args.network, args.label, args.style, seed))
    alone = prepare(choice.network, args.eval)
    if alone and args.batch_size > 1:
        print("batch norm or dropout as published: one image at a time (--eval switches them off)", file=sys.stderr)
    options = FileOptions(
        load_size=args.load_size,
        original_size=args.size == "original",
        tile=args.tile,
        batch_size=1 if alone or choice.names else args.batch_size,
        bits=args.bits,
        precision=args.precision,
    )
    progress = Progress(len(jobs))
    try:
        for outcome in translate_files(choice, jobs, marks, options):
            progress.add(outcome)
    except KeyboardInterrupt:
        progress.tell(f"interrupted: {progress.written} of {len(jobs)} images are in {args.output}")
        return 130
    finally:
        progress.bar.close()
    print(f"{progress.written} of {len(jobs)} images translated into {args.output}", file=sys.stderr)
    return 0 if progress.written == len(jobs) else 1


class Progress:
    """The bar, and what was done by the time of an interruption."""

    def __init__(self, jobs: int):
        self.bar = ProgressBar(0, jobs, 1)
        self.seen = self.written = 0
        self.told = False  # that bits are lost

    def add(self, outcome: Outcome) -> None:
        if outcome.problem:
            self.tell(f"skipped: {outcome.source} ({outcome.problem})")
        else:
            self.written += 1
        if outcome.lost_bits and not self.told:
            self.told = True
            self.tell("images of 16 bits become results of 8 bits; --bits 16 keeps them")
        self.seen += 1
        self.bar.show(self.seen, {})

    def tell(self, text: str) -> None:
        self.bar.close()
        print(text, file=sys.stderr)
