"""Which networks a file or a folder of weights holds, whoever wrote it, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from i2i.errors import UsageError
from i2i.files import CHECKPOINT, CHECKPOINT_FORMAT, published_options, read_tensors, refuse_pickled
from i2i.networks.keys import State
from i2i.networks.recognise import RECOGNISERS

# Under which a file of others may hold what it is about, best first: BasicSR's, timm's, Lightning's, anyone's. Averages
# come first, as they do of checkpoints of i2i.
WRAPPERS = (
    *("params_ema", "state_dict_ema", "state_dict", "model_state_dict", "params"),
    *("model", "network", "net", "weights", "module"),
)
# What others call the networks that the published files call so.
NAMES = {
    **dict.fromkeys(("g", "gen", "generator", "model_g", "net_g"), "G"),
    **dict.fromkeys(("d", "dis", "disc", "discriminator", "model_d", "net_d"), "D"),
    **dict.fromkeys(WRAPPERS, ""),
}
DEPTH = 4  # of dicts within dicts, and of attributes within attributes, that are looked into
# A file of one network by its published name: CUT and CycleGAN (and i2i, with averages), StarGAN, MUNIT.
PATTERNS = (
    re.compile(r"(?P<prefix>.+?)(?P<average>_ema)?_net_(?P<name>.+)\.(pth|safetensors)"),
    re.compile(r"(?P<prefix>\d+)-(?P<name>G|D)\.ckpt"),
    re.compile(r"(?P<name>gen|dis)_(?P<prefix>\d+)\.pt"),
)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Weights(NamedTuple):
    """Of one network."""

    state: State
    source: str  # what to call them in messages
    config: Mapping[str, Any]  # what is said beside them: of a checkpoint of i2i, or by a published train_opt.txt


def files_in(folder: Path, averages: bool) -> dict[str, Path]:
    """By name of network, the files of a folder: the checkpoint of i2i, which has all, under "", or the published files
    of the newest state ("latest", or the only number).

    `averages`: with a moving average of a network's weights beside them, take that.

    UsageError: none, or several numbers and no "latest".
    """
    if (folder / CHECKPOINT).is_file():
        return {"": folder / CHECKPOINT}
    groups: dict[str, dict[tuple[str, bool], Path]] = {}
    for path in sorted(folder.iterdir()):
        match = next(filter(None, (pattern.fullmatch(path.name) for pattern in PATTERNS)), None)
        if match and path.is_file():
            average = bool(match.groupdict().get("average"))
            groups.setdefault(match["prefix"], {})[match["name"], average] = path
    if not groups:
        weights = (p.name for p in sorted(folder.iterdir()) if p.suffix in (".pth", ".pt", ".ckpt", ".safetensors"))
        raise UsageError(f"{folder}: neither {CHECKPOINT} nor latest_net_G.pth in it; there is {_listed(weights)}")
    if "latest" not in groups and len(groups) > 1:
        newest = sorted(groups, key=lambda prefix: (len(prefix) if prefix.isdigit() else 0, prefix))
        files = (path.name for prefix in newest[::-1] for path in groups[prefix].values())
        raise UsageError(
            f"{folder}: no {CHECKPOINT} and no latest_net_G.pth in it; name one of its files: {_listed(files)}"
        )
    found = groups.get("latest") or next(iter(groups.values()))
    names = dict.fromkeys(name for name, _ in found)
    return {name: found[name, averages if (name, averages) in found else not averages] for name in names}


def networks_in(path: Path, averages: bool) -> dict[str, Weights]:
    """By name, the networks whose weights a file holds: "" for the only one of a file that does not tell its name.

    `averages`: of a checkpoint of i2i, the moving averages of weights instead of weights, where it has them.

    UsageError: damaged, or not weights; the message says which.
    """
    content = read_tensors(path, stand_ins=True)
    refuse = f"{path}: neither the weights of one network nor a checkpoint of i2i"
    if not isinstance(content, Mapping) or (not content and not hasattr(content, "pickled")):
        raise UsageError(f"{path}: holds {type(content).__name__} with nothing in it that a network could load")
    if {"state", "param_groups"} <= set(content):
        raise UsageError(f"{path}: the state of an optimizer, not of a network")
    if isinstance(content.get("networks"), Mapping) and "format" in content:
        if content["format"] != CHECKPOINT_FORMAT:
            raise UsageError(f"{refuse} of this version (its keys begin with {_listed(content, 3)})")
        return _of_checkpoint(path, content, averages)
    states = _states(content, "", DEPTH)
    if not states:
        refuse_pickled(path, content)
        raise UsageError(f"{refuse} (its keys begin with {_listed(content, 3)})")
    config = beside(path)
    if list(states) == [""]:
        name = name_of(path)
        return {name: Weights(states[""], str(path), config)}
    return {name: Weights(state, f"{name} of {path}", config) for name, state in states.items()}


def name_of(path: Path) -> str:
    """Of the network in a published file, by the file's name; "" if that does not tell."""
    match = next(filter(None, (pattern.fullmatch(path.name) for pattern in PATTERNS)), None)
    return match["name"] if match and match["name"] not in ("gen", "dis") else ""


def beside(path: Path) -> dict[str, Any]:
    """What the published options in the same folder tell of a network that its keys do not."""
    for name in ("train_opt.txt", "test_opt.txt"):
        options = published_options(path.with_name(name))
        if "no_dropout" in options:
            return {"dropout": options["no_dropout"] in ("False", "false")}
    return {}


def recognise(state: State, where: str, impl: str, config: Mapping[str, Any]) -> tuple[nn.Module, str] | None:
    """The network that keys and shapes are of, without its weights, and what it is in a sentence; None if of none known
    here. UsageError (`where`: ...) where only some of the keys, or other shapes, are there."""
    known = without_stale(state)
    for recogniser in RECOGNISERS:
        kind = recogniser.__name__.replace("_", " ")
        try:
            found = recogniser(known, impl, config)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        except LookupError:
            raise UsageError(f"{where}: has keys of a {kind}, but not all that it needs") from None
        except Exception as error:  # of shapes that make no sense: of many kinds
            raise UsageError(f"{where}: has keys of a {kind}, but not its shapes ({type(error).__name__})") from None
        if found is not None:
            return found
    return None


def fitting(network: nn.Module, state: State, where: str) -> dict[str, Tensor]:
    """`state` as `network.load_state_dict` takes it, which may be on the meta device.

    UsageError (`where`: ...): the first key that is missing or too many, or whose shape or type is another, or whose
    numbers are not all finite.
    """
    own = network.state_dict()
    kept = {key: tensor for key, tensor in state.items() if key in own or not _stale(key, state)}
    for key, wanted in own.items():
        if key not in kept:
            if key.endswith(".num_batches_tracked"):  # batch norms have it since 2018
                continue
            raise UsageError(f"{where}: {key} is missing")
        given = kept[key]
        # Modulated convolutions hold theirs with a dimension of 1 in front or without.
        if wanted.shape != given.shape and not (given.dim() == 4 and wanted.shape == given[None].shape):
            raise UsageError(f"{where}: {key} has shape {_shape(given)}, and {_shape(wanted)} is wanted")
        if given.is_complex() or (wanted.is_floating_point() and not given.is_floating_point()):
            raise UsageError(f"{where}: {key} is of type {str(given.dtype)[6:]}, and floating-point numbers are wanted")
        if wanted.is_floating_point() and not given.to(wanted.dtype).isfinite().all():
            raise UsageError(f"{where}: {key} is not finite everywhere: of a run that diverged, or damaged")
    unknown = next((key for key in kept if key not in own), None)
    if unknown is not None:
        raise UsageError(f"{where}: {unknown} is no key of it")
    return kept


def fill(network: nn.Module, state: State, where: str) -> None:
    """Load `state`, which is `fitting`. UsageError (`where`: ...) where a module of the network wants other numbers."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).partition("\n")[2].split())
        raise UsageError(f"{where}: {reason[:300]}") from None


def without_prefixes(state: State) -> State:
    """Keys without those of DataParallel and torch.compile."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): tensor for key, tensor in state.items()}


def without_stale(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if not _stale(key, state)}


def _stale(key: str, state: State) -> bool:
    """A running statistic that instance norms had in files before 2018: of a norm without weights, which reads none."""
    owner, _, leaf = key.rpartition(".")
    return leaf in STATISTICS and f"{owner}.weight" not in state


def _of_checkpoint(path: Path, content: Mapping[str, Any], averages: bool) -> dict[str, Weights]:
    config, found = content.get("config"), {}
    average = content.get("ema") if averages else None
    for name, state in content["networks"].items():
        mean = average.get(name) if isinstance(average, Mapping) else None
        state, source = (mean, f"moving average of {name}") if mean else (state, name)
        if _is_state(state):
            state = {key: tensor for key, tensor in _tensors(state).items() if key != "n_averaged"}  # AveragedModel's
            state = without_prefixes(state)
            found[name] = Weights(state, f"{source} of {path}", config if isinstance(config, Mapping) else {})
    if not found:
        raise UsageError(f"{path}: a checkpoint without networks")
    return found


def _states(content: Mapping[Any, Any], name: str, depth: int) -> dict[str, State]:
    """The state dicts in what others saved, by the names of their networks; `name` for one that has none."""
    if _is_state(content):
        return _parts(without_prefixes(_tensors(content)), name, DEPTH)
    if not depth or {"state", "param_groups"} <= set(content):
        return {}
    if set(content) == {"a", "b"}:  # MUNIT's gen_*.pt and dis_*.pt
        parts = {domain: _states(part, "", 1) for domain, part in content.items() if isinstance(part, Mapping)}
        if all(list(part) == [""] for part in parts.values()) and len(parts) == 2:
            kinds = ("dis" if any(key.startswith("cnns.") for key in part[""]) else "gen" for part in parts.values())
            return {f"{kind}_{domain}": part[""] for kind, (domain, part) in zip(kinds, parts.items())}
    nested = {key: part for key, part in content.items() if isinstance(key, str) and isinstance(part, Mapping)}
    for key in WRAPPERS:
        if key in nested and (found := _states(nested[key], name, depth - 1)):
            return found
    found = {}
    for key, part in nested.items():
        for inner, state in _states(part, _name(key), depth - 1).items():
            found.setdefault(inner, state)
    return found


def _parts(state: State, name: str, depth: int) -> dict[str, State]:
    """The networks of a state dict: itself, or those that are attributes of the module that it is of (Lightning's)."""
    if not depth or _known(state):
        return {name: state}
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        first, _, rest = key.partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = tensor
    found: dict[str, State] = {}
    for first, group in groups.items():
        for inner, part in _parts(without_prefixes(group), _name(first) or name, depth - 1).items():
            if _known(part):
                found.setdefault(inner, part)
    return found or {name: state}


def _known(state: State) -> bool:
    """Whether keys are those of a network here, if perhaps not all of them or of other shapes."""
    try:
        with torch.device("meta"):
            return recognise(state, "", "reference", {}) is not None
    except UsageError:
        return True


def _name(key: str) -> str:
    """What the published files call a network that others call `key`: netG, generator -> G; netG_A2B -> G_A."""
    key = re.sub(r"_(A)(to|2)?B$|_(B)(to|2)?A$", lambda match: f"_{match[1] or match[3]}", key)
    short = re.sub(r"^net_?(?=[A-Z])", "", key)
    return NAMES.get(short.lower(), short)


def _is_state(content: Any) -> bool:
    """Whether it maps keys of a network to tensors; what else it may hold beside them is passed over."""
    if not isinstance(content, Mapping) or not content:
        return False
    of_tensors = [key for key, value in content.items() if isinstance(value, Tensor)]
    return len(of_tensors) == len(content) or any(isinstance(key, str) and "." in key for key in of_tensors)


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Those with numbers of their own: a file may hold a tensor as large as it likes that repeats a single one."""
    return {key: value for key, value in state.items() if isinstance(key, str) and _plain(value)}


def _plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_quantized or value.is_nested)
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _listed(names: Iterable[Any], most: int = 8) -> str:
    names = list(map(str, names))
    more = f" and {len(names) - most} more" if len(names) > most and most > 3 else ""
    return ", ".join(names[:most]) + more or "no file of weights"
