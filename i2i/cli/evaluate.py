"""`i2i evaluate`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from i2i.data.folders import list_images, pair
from i2i.data.pages import PAGES
from i2i.devices import choose_device
from i2i.errors import UsageError
from i2i.files import refuse_folder, write_atomically
from i2i.inference.metrics import DISTANCES, FEATURES, METRICS, WEIGHTS, compare_pairs, distances

HELP = "score translations: FID, KID, and PSNR and SSIM where the true answers are known"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--real", type=Path, required=True, metavar="DIR", help="images of the target domain, or the true answers")
    add("--fake", type=Path, required=True, metavar="DIR", help="translated images")
    add(
        "--metrics",
        nargs="+",
        choices=METRICS,
        default=list(DISTANCES),
        metavar="NAME",
        help="fid and kid (default; torch-fidelity), psnr and ssim of images of one name (ssim: scikit-image)",
    )
    add("--pages", choices=PAGES, default=PAGES[0], help="of files of several pictures (default: refuse them)")
    add("--inception", type=Path, metavar="FILE", help=f"{WEIGHTS} (default: torch-fidelity downloads it)")
    add("--output", type=Path, metavar="FILE", help="write the numbers as JSON, too")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def refuse_foreign(path: Path, real: Path, fake: Path) -> None:
    """UsageError where the numbers would replace anything but earlier ones of the same images."""
    refuse_folder(path, "--output")
    if os.path.lexists(path):
        try:
            there = json.loads(path.read_bytes())
            own = there["real"], there["fake"]
        except (OSError, ValueError, TypeError, KeyError):
            own = None
        if own != (str(real), str(fake)):
            raise UsageError(
                f"--output {path}: is there already and holds no earlier numbers of {fake} against {real}; "
                "choose another name"
            )


def run(args: argparse.Namespace) -> int:
    if args.output is not None:
        refuse_foreign(args.output, args.real, args.fake)
    device = choose_device(args.device)
    real, fake = list_images(args.real, args.pages), list_images(args.fake, args.pages)
    result: dict[str, Any] = {"real": str(args.real), "fake": str(args.fake)}
    result |= {"real_images": len(real.pictures), "fake_images": len(fake.pictures)}
    in_pairs = tuple(name for name in METRICS if name in args.metrics and name not in DISTANCES)
    between = tuple(name for name in DISTANCES if name in args.metrics)
    if in_pairs:
        result |= compare_pairs(pair(real, fake), in_pairs)
    if between:
        if min(len(real.pictures), len(fake.pictures)) < FEATURES:
            print(
                f"fewer than {FEATURES} images: FID is biased upwards and comparable only between runs with the same "
                "numbers of images; KID is not biased",
                file=sys.stderr,
            )
        result |= distances(real.pictures, fake.pictures, between, args.inception, device)
    print(table(result))
    if args.output is not None:
        # JSON has no infinity: the PSNR of equal images is null
        finite = {name: None if value == math.inf else value for name, value in result.items()}
        write_atomically(args.output, (json.dumps(finite, indent=2) + "\n").encode())
    return 0


def equal_pairs(result: dict[str, Any]) -> str:
    count = result.get("psnr_equal_pairs", 0)
    if not count or result["psnr"] == math.inf:
        return ""
    return f" (without {count} equal pair{'s' if count > 1 else ''}, of infinite PSNR)"


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['fake_images']} translated images, {result['real_images']} real ones"]
    if "fid" in result:
        lines.append(f"FID   {result['fid']:.2f}")
    if "kid" in result:
        lines.append(f"KID   {result['kid']:.5f} (standard deviation over subsets: {result['kid_std']:.5f})")
    if "psnr" in result:
        lines.append(f"PSNR  {result['psnr']:.2f} dB" + equal_pairs(result))
    if "ssim" in result:
        lines.append(f"SSIM  {result['ssim']:.4f}")
    return "\n".join(lines)
