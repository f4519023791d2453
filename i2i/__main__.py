"""Command line: `python -m i2i train`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

import kernels
from i2i import checkpoint
from i2i.config import PRECISIONS, SAMPLE, TRAINABLE_GAN_MODES, Config
from i2i.errors import TrainingDiverged, UsageError
from i2i.train import Result, train

IMPLS = ("auto", "reference", "cpu", "triton", "cuda")
RESUMABLE = {"data", "steps", "save_every", "sample_every"}  # may be given anew with --resume


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            words = [word.split("=")[0] for word in message.split() if word.startswith("--")]
            close = [m for word in words for m in difflib.get_close_matches(word, self.known_options(), n=1)]
            if close:
                message += f" (did you mean {' '.join(close)}?)"
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def known_options(self) -> list[str]:
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += [name for sub in action.choices.values() for name in sub.known_options()]
        return names


def build_parser() -> Parser:
    parser = Parser(prog="python -m i2i", description="Image-to-image training.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    command = commands.add_parser(
        "train",
        help="train CUT on two folders of images, or on sample photographs",
        description="Train CUT. Without --data: a short run on sample photographs, which prints a held-out score. "
        "Ctrl-C saves and stops; --resume goes on exactly from there.",
        argument_default=argparse.SUPPRESS,  # only what was given is in the result, so that defaults have one home
        allow_abbrev=False,
    )
    add = command.add_argument
    add("--data", nargs="+", metavar="DIR", help="a folder with trainA and trainB, or folder A and folder B")
    add("--output", type=Path, metavar="DIR", help="where to write (default: the first free of runs/cut-1, -2, ...)")
    add("--resume", type=Path, metavar="RUN", help="go on from this run's folder or checkpoint, writing into it")
    add(
        "--steps",
        type=int,
        help=f"updates in all (default: 400 passes over the larger folder; sample: {SAMPLE['steps']})",
    )
    add("--batch-size", type=int, help="images per update (default: 1)")
    add("--load-size", type=int, help="images are resized to this square, in pixels (default: 286)")
    add(
        "--crop-size",
        type=int,
        help=f"side of the random crop, in pixels (default: 256; sample: {SAMPLE['crop_size']})",
    )
    add("--no-flip", dest="flip", action="store_false", help="no random mirroring")
    add("--ngf", type=int, help=f"width of the generator (default: 64; sample: {SAMPLE['ngf']})")
    add("--ndf", type=int, help=f"width of the discriminator (default: 64; sample: {SAMPLE['ndf']})")
    add("--n-blocks", type=int, help=f"residual blocks of the generator (default: 9; sample: {SAMPLE['n_blocks']})")
    add("--gan-mode", choices=TRAINABLE_GAN_MODES, help="adversarial loss (default: lsgan)")
    add("--lambda-nce", type=float, help="weight of the contrastive loss (default: 1)")
    add("--no-nce-idt", dest="nce_idt", action="store_false", help="no contrastive identity loss on B")
    add("--num-patches", type=int, help=f"patches per image and layer (default: 256; sample: {SAMPLE['num_patches']})")
    add("--lr", type=float, help="learning rate (default: 2e-4)")
    add("--seed", type=int, help="of weights, images and patches (default: 0)")
    add("--precision", choices=PRECISIONS, help="of convolutions and maps (default: float32)")
    add(
        "--published-order",
        action="store_true",
        help="encode the sources of the contrastive loss a second time, as the published code does (default: keep "
        "their patches from the first; the same losses up to rounding)",
    )
    add("--save-every", type=int, metavar="STEPS", help=f"checkpoint (default: 1000; sample: {SAMPLE['save_every']})")
    add("--sample-every", type=int, metavar="STEPS", help=f"pictures (default: 1000; sample: {SAMPLE['sample_every']})")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    add("--impl", default="auto", choices=IMPLS, help="implementation of the fused operators (default: auto)")
    return parser


def configure(given: dict[str, Any]) -> tuple[Config, dict[str, Any] | None, Path]:
    """Options that were given -> (configuration, checkpoint to resume from or None, output folder)."""
    known = {f.name for f in fields(Config)}
    options = {name: value for name, value in given.items() if name in known}
    if "resume" in given:
        return resume(given["resume"], options, given.get("output"))
    if "data" not in options and "load_size" in options:
        raise UsageError("--load-size has no meaning for the sample photographs; name your own with --data")
    config = Config(**(options if "data" in options else SAMPLE | options))
    if "output" not in given:
        return config, None, next(p for p in (Path("runs") / f"cut-{n}" for n in range(1, 10**6)) if not p.exists())
    output = given["output"]
    if (output / checkpoint.NAME).exists():
        raise UsageError(f"{output} holds a run already: go on with --resume {output}, or choose another --output")
    return config, None, output


def resume(run: Path, options: dict[str, Any], output: Path | None) -> tuple[Config, dict[str, Any], Path]:
    if output is not None:
        raise UsageError("--resume writes into the folder of the run it resumes; leave --output out")
    state = checkpoint.read(run)
    config = checkpoint.config(state)
    for name in set(options) - RESUMABLE:
        if options[name] != getattr(config, name):
            raise UsageError(f"{name} was {getattr(config, name)} in this run and cannot become {options[name]}")
    return replace(config, **options), state, run if run.is_dir() else run.parent


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)  # also finds out whether the device is there
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UsageError(f"--device {name}: {str(error).strip().splitlines()[0]}") from None


def report(result: Result, output: Path) -> None:
    if result.psnr_end is not None:
        print(
            f"held-out PSNR: {result.psnr_start:.2f} dB before training, {result.psnr_end:.2f} dB after "
            f"{result.step} steps (the input as it is: {result.psnr_input:.2f} dB)"
        )
    print(f"pictures:   {result.picture}\nlosses:     {output / 'losses.csv'}\ncheckpoint: {result.checkpoint}")
    if result.stopped_by:
        print(f"stopped after step {result.step}; go on with: python -m i2i train --resume {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. 0: done; 1: diverged or out of memory; 2: a mistake in what was given; 130, 143: signal."""
    given = vars(build_parser().parse_args(argv))
    kernels.keep_freed_memory()  # every step allocates the same sizes again
    try:
        device = choose_device(given["device"])
        config, state, output = configure(given)
        result = train(config, output, device=device, impl=given["impl"], resume=state)
    except (UsageError, kernels.BackendUnavailable, OSError) as error:  # OSError: no right to write, a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print("error: the device ran out of memory; try a smaller --crop-size, --batch-size or --ngf", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing saved since the last checkpoint", file=sys.stderr)
        return 130
    report(result, output)
    return 128 + result.stopped_by if result.stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
