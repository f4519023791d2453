"""`i2i train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from i2i import distributed
from i2i.cli import options
from i2i.config import Config
from i2i.devices import check_impl, choose_device
from i2i.errors import UsageError
from i2i.files import CHECKPOINT
from i2i.methods import METHODS, check_method
from i2i.training import checkpoint, resuming
from i2i.training.loop import Result, print_once, train

USAGE = """usage: i2i train [--method NAME] [--data DIR [DIR]] [--config FILE] [name=value ...]
       i2i train --resume RUN
       torchrun --nproc-per-node N -m i2i train ...

Train a published system on images, or, without --data, for half a minute to three minutes on sample photographs, with
a held-out score at the end. Ctrl-C saves and stops; --resume goes on exactly from there. Several processes (torchrun)
share each step.

  --method NAME   one of those that `i2i list` names (default: cut)
  --data DIR      a folder with trainA and trainB (pix2pix: train, with A and B side by side), or two folders;
                  a text file with a path per line may stand for a folder
  --config FILE   options from a YAML or JSON file; those of the command line win
  --output DIR    where to write, never over the work of another run (default: the first free of runs/<method>-1, ...)
  --resume RUN    go on from this run's folder or checkpoint, writing into it; with the pictures it began with
  --device NAME   auto, cpu, cuda, cuda:1, ... (default: auto)
  --impl NAME     implementation of the fused operators: auto, reference, cpu, triton,
                  cuda (default: auto)

Any other option is a setting of the method: name=value, --name value or --name=value. The names that the CUT and
CycleGAN repositories use (--dataroot, --name, --netG, --nce_T, --no_flip, --continue_train, ...) are understood.
Settings of {method} and their defaults:

{settings}
"""


def help_for_training(words: Sequence[str]) -> str:
    names = [word.partition("=")[2] or after for word, after in zip(words, [*words[1:], ""]) if "method" in word]
    method = check_method(names[0] if names else "cut")
    settings = options.describe(METHODS[method].Config)
    return USAGE.format(method=method, settings=settings)


def run(words: Sequence[str]) -> int:
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
