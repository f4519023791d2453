"""Command line: `i2i train`, `translate`, `export`, `evaluate`, `list`."""

from __future__ import annotations

import argparse
import difflib
import errno
import platform
import re
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

import kernels
from i2i import distributed
from i2i.cli import options
from i2i.config import Config
from i2i.devices import check_impl, choose_device
from i2i.errors import NotSaved, TrainingDiverged, UsageError
from i2i.files import CHECKPOINT
from i2i.inference import export, translate
from i2i.inference import metrics as evaluate
from i2i.methods import METHODS, check_method
from i2i.training import checkpoint, resuming
from i2i.training.loop import Result, print_once, train
from kernels import _commands

DEFECT = 3
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = "DefaultCPUAllocator|out of memory|cannot allocate memory"  # RuntimeErrors of torch
TRAIN_HELP = """usage: i2i train [--method NAME] [--data DIR [DIR]] [--config FILE] [name=value ...]
       i2i train --resume RUN
       torchrun --nproc-per-node N -m i2i train ...

Train a published system on images, or, without --data, for a minute on sample photographs, which prints a held-out
score. Ctrl-C saves and stops; --resume goes on exactly from there. Several processes (torchrun) share each step.

  --method NAME   one of those that `i2i list` names (default: cut)
  --data DIR      a folder with trainA and trainB (pix2pix: train, with A and B side by side), or two folders;
                  a text file with a path per line may stand for a folder
  --config FILE   options from a YAML or JSON file; those of the command line win
  --output DIR    where to write, never over the work of another run (default: the first free of runs/<method>-1, ...)
  --resume RUN    go on from this run's folder or checkpoint, writing into it; with the pictures it began with
  --device NAME   auto, cpu, cuda, cuda:1, ... (default: auto)
  --impl NAME     implementation of the fused operators: auto, reference, cpu, triton (default: auto)

Any other option is a setting of the method: name=value, --name value or --name=value. The names that the CUT and
CycleGAN repositories use (--dataroot, --name, --netG, --nce_T, --no_flip, --continue_train, ...) are understood.
Settings of {method} and their defaults:

{settings}
"""


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            words = [word.split("=")[0] for word in message.split() if word.startswith("--")]
            close = [m for word in words for m in difflib.get_close_matches(word, self.known_options(), n=1)]
            if close:
                message += f" (did you mean {' '.join(close)}?)"
        if "invalid choice: 'test'" in message:
            message += " (what test.py did, translate does)"
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def known_options(self) -> list[str]:
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += [name for sub in action.choices.values() for name in sub.known_options()]
        return names


def build_parser() -> Parser:
    parser = Parser(prog="i2i", description="Image-to-image translation: train it, use it.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    commands.add_parser("train", help="train a published system; see i2i train --help")
    for name, module in (("translate", translate), ("export", export), ("evaluate", evaluate)):
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    commands.add_parser("list", help="name the systems that can be trained").set_defaults(run=list_methods)
    return parser


def list_methods(_: argparse.Namespace) -> int:
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:{width}}  {method.title}")
    return 0


def help_for_training(words: Sequence[str]) -> str:
    names = [word.partition("=")[2] or after for word, after in zip(words, [*words[1:], ""]) if "method" in word]
    method = check_method(names[0] if names else "cut")
    settings = options.describe(METHODS[method].Config)
    return TRAIN_HELP.format(method=method, settings=settings)


def train_command(words: Sequence[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(help_for_training(words))
        return 0
    given = options.read_words(words)
    command = options.take_command(given)
    if "config" in command:  # device and impl, too, may stand in it
        given = options.read_file(Path(command["config"])) | given
        command = options.take_command(given) | command
    impl = check_impl(command.get("impl", "auto"))
    with distributed.processes(choose_device(command.get("device", "auto"))) as device:
        method, config, state, output = configure(command, given)
        result = train(method, config, output, device=device, impl=impl, resume=state)
        if distributed.rank() == 0:
            report(result)
    return 128 + result.stopped_by if result.stopped_by else 0


def configure(command: dict[str, Any], given: dict[str, Any]) -> tuple[str, Config, dict[str, Any] | None, Path | None]:
    """What was given -> (method, configuration, checkpoint to resume from or None, output folder or None)."""
    if "resume" in command:
        return resume(command, given)
    method = command.get("method", "cut").lower()
    kind = METHODS[check_method(method)].Config
    settings = with_whole_paths(options.translate_names(given, kind))
    if "data" not in settings and "load_size" in settings:
        raise UsageError("load_size has no meaning for the sample photographs; name your own with --data")
    config = kind.from_dict(settings if "data" in settings else kind.SAMPLE | settings)
    return method, config, None, Path(command["output"]) if "output" in command else None


def with_whole_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """A run can be resumed from any directory."""
    return settings | {"data": [str(Path(p).absolute()) for p in settings["data"]]} if "data" in settings else settings


def resume(command: dict[str, Any], given: dict[str, Any]) -> tuple[str, Config, dict[str, Any], Path]:
    if "output" in command:
        raise UsageError("--resume writes into the folder of the run it resumes; leave --output out")
    run = Path(command["resume"])
    folder = run if run.is_dir() else run.parent
    if run.is_file() and run.name != CHECKPOINT:
        raise UsageError(
            f"{run}: a run goes on from the {CHECKPOINT} of its folder; to go back to another one, put it into a "
            "folder of its own under that name"
        )
    state = checkpoint.read(run)
    method, config = state["method"], checkpoint.config(state)
    resuming.check_settings(state, command.get("method", method).lower(), config)
    settings = with_whole_paths(options.translate_names(given, type(config)))
    return method, replace(config, **settings), state, folder


def report(result: Result) -> None:
    output = result.checkpoint.parent
    if result.end is not None:
        print_once(
            f"held-out {result.metric}: {result.start:.2f} before training, {result.end:.2f} after "
            f"{result.step} steps (the input as it is: {result.untouched:.2f})"
        )
    print_once(f"pictures:   {result.picture}\nlosses:     {output / 'losses.csv'}\ncheckpoint: {result.checkpoint}")
    if result.stopped_by:
        print_once(f"stopped after step {result.step}; go on with: i2i train --resume {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. 0: done; 1: diverged, out of memory or of space; 2: a mistake in what was given; 3: a
    defect of ours; 129, 130, 141, 143: a signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    told = "interrupted; nothing saved since the last checkpoint" if words[:1] == ["train"] else "interrupted"
    return _commands.run(lambda: answer(words), told)


def answer(words: list[str]) -> int:
    """The exit status; whatever goes wrong is told in one sentence."""
    kernels.keep_freed_memory()  # every step allocates the same sizes again
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names that this terminal cannot show
    threading.excepthook = from_thread
    try:
        if words[:1] == ["train"]:
            return train_command(words[1:])
        given = build_parser().parse_args(words)
        return given.run(given)
    except BrokenPipeError:
        raise
    except Exception as error:
        status, sentence = explain(error)
        if status == DEFECT:
            traceback.print_exception(error)
        print(f"error: {sentence}", file=sys.stderr)
        return status


def from_thread(given: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets a full disk first, and its traceback is none for people: `flush` meets the same."""
    if not isinstance(given.exc_value, OSError):
        threading.__excepthook__(given)


def explain(error: Exception) -> tuple[int, str]:
    """(exit status, what to tell)."""
    if isinstance(error, (NotSaved, TrainingDiverged)):
        return 1, str(error)
    if isinstance(error, (UsageError, kernels.BackendUnavailable)):
        return 2, str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(NO_MEMORY, str(error), re.IGNORECASE):
        return 1, "the device ran out of memory; try a smaller crop_size, batch_size or width"
    if distributed.lost(error):
        return 1, "another process of this run has ended, and this one with it; what it printed says why"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else "standard output: " if error.errno in NO_SPACE else ""
        return 1 if error.errno in NO_SPACE else 2, f"{where}{error.strerror}" if error.strerror else str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in ("i2i", "kernels"):
        return 2, f"this needs the package {error.name}: pip install {error.name}"
    return DEFECT, (
        f"{type(error).__name__}: this is a defect of i2i {kernels.__version__} and no mistake of yours. Please report "
        f"it in the project's issue tracker, with the lines above, the command, and what kernels-report prints "
        f"(torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()})"
    )


if __name__ == "__main__":
    sys.exit(main())
