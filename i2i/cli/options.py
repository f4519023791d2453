"""From the words of a command line, or a file, to a method's configuration.

Every field of a configuration is an option: `field=value`, `--field value`, `--field=value`, in either spelling of
multi-word names (`--batch-size`, `--batch_size`). Names that users of the CUT and CycleGAN repositories know are
accepted beside them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from i2i.config import Config, suggestion
from i2i.errors import UsageError
from i2i.files import CHECKPOINT, published_options, read_text

# Published names whose meaning is one field under another name.
ALIASES = {
    "dataroot": "data",
    "netg": "generator",
    "netd": "discriminator",
    "normg": "norm",
    "normd": "norm",
    "netf": "feature_network",
    "netf_nc": "feature_width",
    "nce_t": "temperature",
    "save_latest_freq": "save_every",
    "display_freq": "sample_every",
    "save_epoch_freq": "keep_every",
    "niter": "n_epochs",  # of CycleGAN until 2020
    "niter_decay": "n_epochs_decay",
    "max_iter": "steps",  # of MUNIT
    "new_size": "load_size",
    "gan_type": "gan_mode",
    "num_iters": "steps",  # of StarGAN
    "image_size": "crop_size",
    "celeba_crop_size": "center_crop",
    "rafd_crop_size": "center_crop",
    "g_lr": "lr",
    "d_lr": "lr",
}
# Published names that say a field has this value.
FLAGS = {
    "no_flip": ("flip", False),
    "no_dropout": ("dropout", False),
    "no_antialias": ("antialias", False),
    "no_antialias_up": ("antialias_up", False),
}
ALL_NEGATIVES = "nce_includes_all_negatives_from_minibatch"  # negatives=minibatch, or image
METHOD_NAMES = {"cycle_gan": "cyclegan"}
# Published options without a meaning here, and why: named on stderr and left out. Anything else unknown is an error.
WITHOUT_MEANING = {
    "display_id": "there is no visdom server: pictures and losses are files",
    "display_port": "there is no visdom server: pictures and losses are files",
    "display_server": "there is no visdom server: pictures and losses are files",
    "display_env": "there is no visdom server: pictures and losses are files",
    "display_ncols": "there is no visdom server: pictures and losses are files",
    "use_wandb": "losses go to losses.csv and, with tensorboard=true, to TensorBoard",
    "wandb_project_name": "losses go to losses.csv and, with tensorboard=true, to TensorBoard",
    "no_html": "no web page is written",
    "update_html_freq": "no web page is written",
    "print_freq": "the progress line is always there",
    "epoch_count": "a resumed run knows its epoch",
    "epoch": "a run is resumed from its newest checkpoint",
    "phase": "training takes trainA and trainB",
    "verbose": "networks are not printed",
    "display_winsize": "pictures have the size of their images",
    "save_by_iter": "save_every counts steps",
    "evaluation_freq": "it had no effect in the published code",
}
PATHS = ("data", "init_from")  # one or several; a path may contain a comma
UNLIMITED = ("inf", "infinity", "float('inf')")  # published max_dataset_size
# What a published train_opt.txt says of the run that wrote it, and not of the next.
OF_THAT_RUN = {"name", "checkpoints_dir", "continue_train", "gpu_ids", "istrain", "load_iter", "suffix", "opt_file"}


ASSIGNMENT = re.compile(r"[A-Za-z]\w*=")


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """`a=1 --b 2 --c=3 --no_flip` -> names, as spelled but in lower case with underscores, and values as text.

    A name without a value is true. Several words after `--data` or `--init_from` are its paths.
    """
    given: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--") or ASSIGNMENT.match(word):  # a flag before it does not take it as its value
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.lower().replace("-", "_")
            if name in given:
                raise UsageError(f"{name} is given twice")
            given[name] = value if equals else True
            if equals:
                name = ""
        elif not name or re.match(r"-[A-Za-z]", word):
            raise UsageError(f"{word!r} belongs to no option: write name=value or --name value, as in --data {word}")
        elif given[name] is True:
            given[name] = word
        elif ALIASES.get(name, name) in PATHS:
            given[name] = [*([given[name]] if isinstance(given[name], str) else given[name]), word]
        else:
            raise UsageError(f"{word!r} is one value too many for {name}, which is {given[name]!r}")
    return given


def read_file(path: Path) -> dict[str, Any]:
    """Options from a YAML (or JSON) file: names and values, as on the command line. Or from the train_opt.txt that the
    CUT and CycleGAN repositories write."""
    published = published_options(path)
    if published:
        return from_published(path, published)
    try:
        values = yaml.safe_load(read_text(path))
    except OSError as error:
        raise UsageError(f"config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(f"config {path} must hold lines `name: value`")
    return {name.lower().replace("-", "_"): value for name, value in values.items()}


def from_published(path: Path, published: dict[str, str]) -> dict[str, Any]:
    """Of a published file's options, all of them with their defaults, those with a meaning for its method."""
    from i2i.methods import METHODS  # which read options of their own

    method = take_command({name: published[name] for name in ("model", "cut_mode") if name in published})["method"]
    if method not in METHODS:
        raise UsageError(f"config {path}: model is {method}, which is none of {', '.join(METHODS)}")
    config = METHODS[method].Config
    known = {field.name for field in fields(config)}
    if "negatives" in known:
        known.add(ALL_NEGATIVES)
    fields_of = {name: FLAGS.get(name, (ALIASES.get(name, name),))[0] for name in published}
    kept = {name: value for name, value in published.items() if name in known or fields_of[name] in known}
    left_out = sorted(published.keys() - kept.keys() - OF_THAT_RUN - {"model", "cut_mode"} - WITHOUT_MEANING.keys())
    if left_out:
        print(f"{path}: without a meaning for {method}, left out: {', '.join(left_out)}", file=sys.stderr)
    return {"method": method, **translate_names(kept, config)}


def translate_names(given: dict[str, Any], config: type[Config]) -> dict[str, Any]:
    """Published names -> fields of `config`. Raises UsageError for names that are neither, with the nearest one."""
    known = {field.name for field in fields(config)}
    options: dict[str, Any] = {}
    for name, value in given.items():
        field = name
        if name in FLAGS and FLAGS[name][0] in known:
            field, meant = FLAGS[name]
            if value not in (True, "true", "True"):
                meant = not meant
            value = meant
        elif name == ALL_NEGATIVES:
            field, value = "negatives", "minibatch" if value in (True, "true", "True") else "image"
        elif ALIASES.get(name) in known:
            field = ALIASES[name]
        if field in WITHOUT_MEANING and field not in known:
            print(f"{name} is left out: {WITHOUT_MEANING[field]}", file=sys.stderr)
            continue
        if field not in known:
            raise UsageError(f"unknown option: {name}{suggestion(name, known | set(FLAGS) | set(ALIASES) | COMMANDS)}")
        if field == "max_dataset_size" and str(value).lower() in UNLIMITED:
            value = 0
        if value is True and get_type_hints(config)[field] is not bool:
            raise UsageError(f"{name} needs a value")
        if field in options and options[field] != value:
            raise UsageError(f"{field} is given twice, as {options[field]!r} and as {value!r}")
        options[field] = value
    for name in PATHS:
        if isinstance(options.get(name), str):
            options[name] = [options[name]]
    if isinstance(options.get("init_from"), list):  # the run that remembers it may be looked at from anywhere
        options["init_from"] = [str(Path(path).absolute()) for path in options["init_from"]]
    return options


def take_command(given: dict[str, Any]) -> dict[str, Any]:
    """Remove what is about the run and not its configuration from `given`: method, config, output, resume, device,
    impl, and the published names for them."""
    taken = {
        name: require_value(name, given.pop(name)) for name in list(given) if name in COMMANDS | PUBLISHED_COMMANDS
    }
    if "pretrained_name" in taken:  # of CUT, with continue_train: weights of one run, for another
        given.setdefault("init_from", str(run_folder(taken | {"name": taken["pretrained_name"]})))
        taken.pop("continue_train", None)
    if taken.get("continue_train", "False").lower() in ("true", "yes", "1") and "resume" not in taken:
        if "name" not in taken:
            raise UsageError("continue_train needs name, the run to go on with; or give its folder as resume")
        taken["resume"] = run_folder(taken)
        if not (Path(taken["resume"]) / CHECKPOINT).exists() and any(Path(taken["resume"]).glob("*_net_*.pth")):
            raise UsageError(
                f"continue_train: {taken['resume']} holds weights alone, and no {CHECKPOINT} to go on from exactly; "
                f"start another run from them with --init_from {taken['resume']}"
            )
    elif "name" in taken:
        taken.setdefault("output", run_folder(taken))
    if "model" in taken or "cut_mode" in taken:
        published = taken["model"] if taken.get("model", "cut") != "cut" else taken.get("cut_mode", "cut")
        taken.setdefault("method", METHOD_NAMES.get(published.lower(), published.lower()))
    if "gpu_ids" in taken:
        if "," in taken["gpu_ids"]:
            raise UsageError("gpu_ids takes one device; for several: torchrun --nproc-per-node N -m i2i train ...")
        taken.setdefault("device", "cpu" if taken["gpu_ids"] == "-1" else f"cuda:{taken['gpu_ids']}")
    return {name: value for name, value in taken.items() if name in COMMANDS}


def run_folder(taken: dict[str, Any]) -> str:
    return str(Path(taken.get("checkpoints_dir", "checkpoints")) / taken["name"])


def require_value(name: str, value: Any) -> str:
    if value is None or (value is True and name != "continue_train"):  # None: of a file's empty value
        raise UsageError(f"{name} needs a value")
    return str(value)


def describe(config: type[Config]) -> str:
    """Every option of a method with its default and its help, a line each."""
    lines = [(f"  {field.name}={written(field.default)}", config.help_of(field.name)) for field in fields(config)]
    return "\n".join(f"{setting:32}  {text}".rstrip() for setting, text in lines)


def written(value: Any) -> str:
    """As `config.convert` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


COMMANDS = {"method", "config", "output", "resume", "device", "impl"}
PUBLISHED_COMMANDS = {"name", "checkpoints_dir", "continue_train", "pretrained_name", "model", "cut_mode", "gpu_ids"}
