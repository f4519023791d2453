"""Published weights: read into the network they belong to, and written as the published code reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from i2i.errors import UsageError
from i2i.files import make_folder, save_tensors
from i2i.inference.weight_files import (
    Weights,
    files_in,
    fill,
    fitting,
    name_of,
    networks_in,
    recognise,
    without_prefixes,
)
from i2i.networks.keys import State

DIRECTIONS = {"AtoB": ("gen_a", "gen_b"), "BtoA": ("gen_b", "gen_a")}  # of MUNIT, whose translators are pairs
FIRST = ("G", "G_A")


def load(path: str | Path, *, network: str | None = None, impl: str = "auto") -> nn.Module:
    """The network whose weights `path` holds, on the CPU and in eval mode; the architecture follows from them.

    Args:
        path: a published file (`latest_net_G.pth`) or the folder of such, or a checkpoint of i2i or the folder of the
            run that wrote it; or a file of others: Lightning's checkpoints, safetensors, dicts of several networks.
        network: which one of several ("G", "D", "G_A", ...), default "G" or "G_A"; of MUNIT's pairs "AtoB"
            (the default) or "BtoA". Where a checkpoint or a folder has the moving average of a network's weights, it is
            taken; name the file (`latest_net_G.pth`) for the weights themselves.
        impl: of the fused operators (see `kernels.instance_norm`).

    Returns:
        The network, with two attributes: `recognised`, one sentence that says what it is, and `found_in`, where its
        weights come from.

    Raises:
        UsageError: no such file, damaged, not weights, or weights of no network known here; the message says which.
    """
    weights = choose(Path(path), network)
    state, where = weights.state, weights.source
    with torch.device("meta"):  # first without memory: a file may ask for as much as it likes
        found = recognise(state, where, impl, weights.config)
        if found is None:
            first = ", ".join(list(state)[:3])
            raise UsageError(f"{where}: weights of no network known here (its {len(state)} keys begin with {first})")
        taken = f"{where}: taken for a {found[1]}, but it is not one"
        state = fitting(found[0], state, taken)
    again = recognise(state, where, impl, weights.config)
    assert again is not None  # the same keys as before
    net: Any = again[0]
    net.recognised, net.found_in = again[1], where
    fill(net, state, taken)
    return net.eval()


def choose(path: Path, network: str | None) -> Weights:
    """The weights of the wanted network, or of MUNIT's two as those of one translator, from a file or a folder."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if not path.is_dir():
        found = networks_in(path, averages=True)
        if list(found) == [""]:
            if network is not None:
                raise UsageError(f"{path}: holds one network, so network must be left out, got {network!r}")
            return found[""]
        if network is None and len(found) == 1:
            return next(iter(found.values()))
        return _of(found, _wanted(path, found, network))
    files = files_in(path, averages=True)
    if list(files) == [""]:
        found = networks_in(files[""], averages=True)
        return _of(found, _wanted(files[""], found, network))
    if network is None and not {"G", "G_A", "gen", "gen_a"} & set(files):
        raise UsageError(f"{path}: neither checkpoint.pt nor latest_net_G.pth in it; there is {_names(files)}")
    if {"gen", "dis"} & set(files):  # MUNIT's own files, of both domains each
        found = {name: weights for file in files.values() for name, weights in networks_in(file, averages=True).items()}
        return _of(found, _wanted(path, found, network))
    wanted = _wanted(path, files, network)
    found = {name: networks_in(files[name], averages=True) for name in wanted}
    return _of({name: parts[name] if name in parts else parts[""] for name, parts in found.items()}, wanted)


def _names(files: Mapping[str, Path]) -> str:
    return ", ".join(sorted(file.name for file in files.values()))


def _wanted(path: Path, names: Iterable[str], network: str | None) -> tuple[str, ...]:
    """The names of the network to take, or of the two of MUNIT's domains."""
    names = list(names)
    paired = {"gen_a", "gen_b"} <= set(names)
    if paired and network in (None, *DIRECTIONS):
        return DIRECTIONS[network or "AtoB"]
    if network is None:
        network = next((name for name in FIRST if name in names), None)
    if network not in names:
        offered = [*(DIRECTIONS if paired else ()), *names]
        beside = path.with_name(path.name.replace(f"_net_{name_of(path)}.", f"_net_{network}."))
        hint = f"; {network} is in {beside}" if path.is_file() and name_of(path) and beside.is_file() else ""
        raise UsageError(f"{path}: network must be one of {', '.join(offered)}, got {network!r}{hint}")
    return (network,)


def _of(found: Mapping[str, Weights], wanted: tuple[str, ...]) -> Weights:
    if len(wanted) == 1:
        return found[wanted[0]]
    parts = dict(zip(("source", "target"), (found[name] for name in wanted)))
    state: State = {f"{part}.{key}": tensor for part, own in parts.items() for key, tensor in own.state.items()}
    names, _, places = zip(*(own.source.rpartition(" of ") for own in parts.values()))
    place = places[0] if len(set(places)) == 1 else " and ".join(places)
    return Weights(state, f"{' and '.join(names)} of {place}" if all(names) else place, parts["source"].config)


def save_published(folder: Path, prefix: str, networks: Mapping[str, nn.Module]) -> None:
    """Write `<prefix>_net_<name>.pth` into `folder` for each of the networks that has parameters, by published letters.

    A file is a plain OrderedDict of contiguous CPU tensors by published keys, which the published code loads; it is
    replaced in one go once the new one is whole.
    """
    make_folder(folder)
    for name, net in networks.items():
        state = without_prefixes(net.state_dict())
        if not state:  # `sample` and `reshape` have nothing to keep
            continue
        path = folder / f"{prefix}_net_{name}.pth"
        plain = OrderedDict((key, tensor.detach().cpu().contiguous()) for key, tensor in state.items())
        save_tensors(path, plain)
