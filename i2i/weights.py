"""Published weights: read into the network they belong to, and written as the published code reads them."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from i2i.checkpoint import FORMAT, NAME
from i2i.errors import UsageError
from i2i.files import read_tensors, replacing
from i2i.networks.recognise import RECOGNISERS, State

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
DIRECTIONS = ("AtoB", "BtoA")


def load(path: str | Path, *, network: str | None = None, impl: str = "auto") -> nn.Module:
    """The network whose weights `path` holds, on the CPU and in eval mode; the architecture follows from them.

    Args:
        path: a published file (`latest_net_G.pth`), or a checkpoint of i2i, or the folder of the run that wrote it.
        network: which one of a file with several ("G", "D", "G_A", ...), default "G" or "G_A"; of MUNIT's pairs "AtoB"
            (the default) or "BtoA". Where a checkpoint has the moving average of a network's weights, it is taken.
        impl: of the fused operators (see `kernels.instance_norm`).

    Returns:
        The network, with an attribute `recognised`: one sentence that says what it is.

    Raises:
        UsageError: no such file, damaged, not weights, or weights of no network known here; the message says which.
    """
    path = Path(path)
    where, state, config = _choose(path, read_tensors(_file_of(path)), network)
    state = _without_prefixes(state)
    known = {key: tensor for key, tensor in state.items() if not _stale(key, state)}
    net = None
    for recogniser in RECOGNISERS:
        try:
            found = recogniser(known, impl, config)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        except LookupError:
            kind = recogniser.__name__.replace("_", " ")
            raise UsageError(f"{where}: has keys of a {kind}, but not all that it needs") from None
        if found is not None:
            net, net.recognised = found
            break
    if net is None:
        first = ", ".join(list(state)[:3])
        raise UsageError(f"{where}: weights of no network known here (its {len(state)} keys begin with {first})")
    own = net.state_dict()
    try:
        net.load_state_dict({key: tensor for key, tensor in state.items() if key in known or key in own})
    except RuntimeError as error:
        reason = " ".join(str(error).partition("\n")[2].split())
        raise UsageError(f"{where}: taken for a {net.recognised}, but it is not one: {reason[:300]}") from None
    return net.eval()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a command that begins with `load`."""
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="published weights, a checkpoint or a run's folder")
    add(
        "--network", metavar="NAME", help="which of a checkpoint's networks, such as G_B (default: its first generator)"
    )


def save_published(folder: Path, prefix: str, networks: Mapping[str, nn.Module]) -> None:
    """Write `<prefix>_net_<name>.pth` into `folder` for each of the networks that has parameters, by published letters.

    A file is a plain OrderedDict of contiguous CPU tensors by published keys, which the published code loads; it is
    replaced in one go once the new one is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, net in networks.items():
        state = _without_prefixes(net.state_dict())
        if not state:  # `sample` and `reshape` have nothing to keep
            continue
        path = folder / f"{prefix}_net_{name}.pth"
        plain = OrderedDict((key, tensor.detach().cpu().contiguous()) for key, tensor in state.items())
        with replacing(path) as temporary:
            torch.save(plain, temporary)


def _file_of(path: Path) -> Path:
    """The file of weights that `path` is, or of the folder: a checkpoint of ours, else a published generator."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder")
    for name in (NAME, "latest_net_G.pth", "latest_net_G_A.pth"):
        if (path / name).is_file():
            return path / name
    there = ", ".join(sorted(p.name for p in path.glob("*.pth"))) or "no file of weights"
    raise UsageError(f"{path}: neither {NAME} nor latest_net_G.pth in it; there is {there}")


def _choose(path: Path, content: Any, network: str | None) -> tuple[str, State, Mapping[str, Any]]:
    """(what to call it in messages, its weights, configuration) of the wanted network among a file's contents."""
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path}: holds {type(content).__name__} with nothing in it that a network could load")
    if all(isinstance(value, Tensor) for value in content.values()):
        if network is not None:
            raise UsageError(f"{path}: holds one network, so network must be left out, got {network!r}")
        return str(path), content, {}
    if {"state", "param_groups"} <= set(content):
        raise UsageError(f"{path}: the state of an optimizer, not of a network")
    if set(content) == {"a", "b"} and all(isinstance(part, dict) for part in content.values()):  # MUNIT's gen_*.pt
        return str(path), _pair(path, content["a"], content["b"], network), {}
    networks, average = content.get("networks"), content.get("ema") or {}
    if content.get("format") != FORMAT or not isinstance(networks, dict):
        keys = ", ".join(map(str, list(content)[:3]))
        raise UsageError(
            f"{path}: neither the weights of one network nor a checkpoint of i2i (its keys begin with {keys})"
        )
    config = content.get("config", {})
    # n_averaged: of AveragedModel, which counts
    states = {
        name: {key: tensor for key, tensor in average.get(name, state).items() if key != "n_averaged"}
        for name, state in networks.items()
    }
    if "gen_a" in states and network in (None, *DIRECTIONS):
        generators = (_without_prefixes(states[name]) for name in ("gen_a", "gen_b"))
        return str(path), _pair(path, *generators, network), config
    if network is None:
        network = next((name for name in ("G", "G_A") if name in states), None)
    if network not in states:
        raise UsageError(f"{path}: network must be one of {', '.join(states)}, got {network!r}")
    return f"{network} of {path}", states[network], config


def _pair(path: Path, a: State, b: State, network: str | None) -> State:
    """The weights of a translator from those of two domains' generators."""
    if network not in (None, *DIRECTIONS):
        raise UsageError(f"{path}: network must be one of {', '.join(DIRECTIONS)}, got {network!r}")
    parts = {"source": b, "target": a} if network == "BtoA" else {"source": a, "target": b}
    return {f"{part}.{key}": tensor for part, state in parts.items() for key, tensor in state.items()}


def _without_prefixes(state: State) -> State:
    """Keys without those of DataParallel and torch.compile."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): tensor for key, tensor in state.items()}


def _stale(key: str, state: State) -> bool:
    """A running statistic that instance norms had in files before 2018: of a norm without weights, which reads none."""
    owner, _, leaf = key.rpartition(".")
    return leaf in STATISTICS and f"{owner}.weight" not in state
