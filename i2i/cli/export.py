"""`i2i export`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from i2i.cli.arguments import add_label, add_weights
from i2i.errors import UsageError
from i2i.files import refuse_folder
from i2i.inference import weights
from i2i.inference.export import MARK, PACKAGES, export_onnx, require_packages
from i2i.inference.outputs import mark
from i2i.inference.targets import in_label
from i2i.inference.translate import refuse_judge

HELP = "write a trained network as an ONNX file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_weights(parser)
    add_label(parser, "none, and one is needed")
    add(
        "--onnx",
        type=Path,
        required=True,
        metavar="FILE",
        help="the file to write. It computes what `i2i translate --eval` does: batch norm with its trained statistics, "
        "no dropout. pix2pix was published without --eval, so expect its results to differ from those",
    )
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="one image of this size (default: any number of images of any size that the network takes)",
    )


def refuse_foreign(path: Path, own: str) -> None:
    """UsageError where the file to write would replace anything but an earlier export of the same weights."""
    refuse_folder(path, "--onnx")
    if os.path.lexists(path) and mark_of(path) != own:
        raise UsageError(
            f"--onnx {path}: is there already and is no earlier export of these weights; choose another name"
        )


def mark_of(path: Path) -> str | None:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # of bytes that are no such file: of many kinds
        return None
    return next((entry.value for entry in model.metadata_props if entry.key == MARK), None)


def run(args: argparse.Namespace) -> int:
    require_packages(*PACKAGES)  # before anything is read
    own = mark(args.weights, args.network, args.label)
    refuse_foreign(args.onnx, own)
    network = in_label(weights.load(args.weights, network=args.network, impl="reference"), args.label)
    refuse_judge(network)
    print(f"{network.found_in}: {network.recognised}", file=sys.stderr)
    try:
        worst = export_onnx(network, args.onnx, tuple(args.size) if args.size else None, own)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "alloc" not in str(error).lower():
            raise
        raise UsageError("--size: images of this size are too large for the memory of this machine") from None
    print(f"{args.onnx}: written; largest difference between onnxruntime and torch: {worst:.1e}", file=sys.stderr)
    return 0
