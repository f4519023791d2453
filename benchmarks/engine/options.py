"""What the commands have in common: rounds, device, folder, and how they end when these cannot be had."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.engine import machine
from i2i.errors import UsageError
from i2i.files import make_folder
from kernels import _commands


class Place(NamedTuple):
    device: torch.device
    folder: Path  # for the results


def add_arguments(parser: argparse.ArgumentParser, rounds: str, files: str, default: int | None = None) -> None:
    """rounds, files: what the help says of them."""
    parser.add_argument("--rounds", type=_positive, default=default, help=rounds)
    add_place(parser, files)


def add_place(parser: argparse.ArgumentParser, files: str) -> None:
    """What `place` reads."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--output", type=Path, help=f"folder for {files} (default runs/benchmarks/MACHINE)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, want a number >= 1")
    return value


def place(options: argparse.Namespace, plots: bool = True) -> Place:
    """Where to measure and to write. UsageError or OSError where that, or what the plots need, is missing: now, and not
    after minutes of measuring."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device")
    if plots and importlib.util.find_spec("matplotlib") is None:
        raise UsageError("the plot needs matplotlib: pip install matplotlib")
    folder = options.output or Path("runs/benchmarks") / machine.slug(device)
    make_folder(folder)
    return Place(device, folder)


def run(body: Callable[[], int]) -> int:
    """What a command's `body` returns; 2 after a sentence on stderr where something it was given is missing or wrong;
    130 after Ctrl-C."""

    def told() -> int:
        try:
            return body()
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:
            raise
        except OSError as error:  # of a file that could not be written
            print(f"error: {error}", file=sys.stderr)
            return 1

    return _commands.run(told)
