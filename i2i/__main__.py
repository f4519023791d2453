"""Command line: `i2i train`, `translate`, `export`, `evaluate`, `list`."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

import kernels
from i2i import checkpoint, distributed, evaluate, export, options, translate
from i2i.config import Config, suggestion
from i2i.devices import check_impl, choose_device
from i2i.errors import TrainingDiverged, UsageError
from i2i.methods import METHODS
from i2i.train import Result, say, train

# May be given anew with resume: nothing of what was computed depends on them.
RESUMABLE = {
    *("data", "steps", "n_epochs", "n_epochs_decay", "num_threads"),
    *("save_every", "sample_every", "keep_every", "tensorboard"),
}
TRAIN_HELP = """usage: i2i train [--method NAME] [--data DIR [DIR]] [--config FILE] [name=value ...]
       i2i train --resume RUN
       torchrun --nproc-per-node N -m i2i train ...

Train a published system on images, or, without --data, for a minute on sample photographs, which prints a held-out
score. Ctrl-C saves and stops; --resume goes on exactly from there. Several processes (torchrun) share each step.

  --method NAME   one of those that `i2i list` names (default: cut)
  --data DIR      a folder with trainA and trainB (pix2pix: train, with A and B side by side), or two folders;
                  a text file with a path per line may stand for a folder
  --config FILE   options from a YAML or JSON file; those of the command line win
  --output DIR    where to write (default: the first free of runs/<method>-1, -2, ...)
  --resume RUN    go on from this run's folder or checkpoint, writing into it
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
    for module in (translate, export, evaluate):
        name = module.__name__.rpartition(".")[2]
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
            report(result, output)
    return 128 + result.stopped_by if result.stopped_by else 0


def configure(command: dict[str, Any], given: dict[str, Any]) -> tuple[str, Config, dict[str, Any] | None, Path]:
    """What was given -> (method, configuration, checkpoint to resume from or None, output folder)."""
    if "resume" in command:
        return resume(command, given)
    method = command.get("method", "cut").lower()
    kind = METHODS[check_method(method)].Config
    settings = with_whole_paths(options.translate_names(given, kind))
    if "data" not in settings and "load_size" in settings:
        raise UsageError("load_size has no meaning for the sample photographs; name your own with --data")
    config = kind.from_dict(settings if "data" in settings else kind.SAMPLE | settings)
    if "output" not in command:
        free = next(p for p in (Path("runs") / f"{method}-{n}" for n in range(1, 10**6)) if not p.exists())
        return method, config, None, distributed.gather(free)[0]
    output = Path(command["output"])
    if (output / checkpoint.NAME).exists():
        raise UsageError(f"{output} holds a run already: go on with --resume {output}, or choose another --output")
    return method, config, None, output


def check_method(name: str) -> str:
    if name not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, got {name}{suggestion(name, METHODS)}")
    return name


def with_whole_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """A run can be resumed from any directory."""
    return settings | {"data": [str(Path(p).absolute()) for p in settings["data"]]} if "data" in settings else settings


def resume(command: dict[str, Any], given: dict[str, Any]) -> tuple[str, Config, dict[str, Any], Path]:
    if "output" in command:
        raise UsageError("--resume writes into the folder of the run it resumes; leave --output out")
    run = Path(command["resume"])
    state = checkpoint.read(run)
    method, config = state["method"], checkpoint.config(state)
    if command.get("method", method).lower() != method:
        raise UsageError(f"method was {method} in this run and cannot become {command['method']}")
    settings = with_whole_paths(options.translate_names(given, type(config)))
    wanted = replace(config, **settings)
    for name in set(settings) - RESUMABLE:
        old, new = getattr(config, name), getattr(wanted, name)
        if old != new:
            free = ", ".join(sorted(RESUMABLE))
            raise UsageError(f"{name} was {old} in this run and cannot become {new}; what may change: {free}")
    return method, wanted, state, run if run.is_dir() else run.parent


def report(result: Result, output: Path) -> None:
    if result.end is not None:
        say(
            f"held-out {result.metric}: {result.start:.2f} before training, {result.end:.2f} after "
            f"{result.step} steps (the input as it is: {result.untouched:.2f})"
        )
    say(f"pictures:   {result.picture}\nlosses:     {output / 'losses.csv'}\ncheckpoint: {result.checkpoint}")
    if result.stopped_by:
        say(f"stopped after step {result.step}; go on with: i2i train --resume {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. 0: done; 1: diverged or out of memory; 2: a mistake in what was given; 130, 143: signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name of a file that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    kernels.keep_freed_memory()  # every step allocates the same sizes again
    try:
        if words[:1] == ["train"]:
            return train_command(words[1:])
        given = build_parser().parse_args(words)
        return given.run(given)
    except (UsageError, kernels.BackendUnavailable, OSError) as error:  # OSError: no right to write, a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print("error: the device ran out of memory; try a smaller crop_size, batch_size or width", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing saved since the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
