"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_weights(parser: argparse.ArgumentParser) -> None:
    """What to load, and which of its networks."""
    add = parser.add_argument
    add(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="weights: published, a checkpoint, or a folder of them",
    )
    add(
        "--network", metavar="NAME", help="which of a checkpoint's networks, such as G_B (default: its first generator)"
    )


def add_label(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--label",
        metavar="NAMES",
        help="StarGAN, MatchGAN: what results show, such as Blond_Hair,Young, of all other attributes nothing; or a 0 "
        f"or 1 for every attribute, such as 0,1,0,0,1 (default: {default})",
    )
