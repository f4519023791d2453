"""The setting `init_from`: a run that starts from weights of an earlier one, of ours or published, not from chance."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from i2i.errors import UsageError
from i2i.inference.weight_files import Weights, files_in, fill, fitting, networks_in, recognise
from i2i.methods.base import Method


def initialise(model: Method) -> str:
    """Put the weights that `model.config.init_from` names into the networks that they are of, by their names; those of
    a file with a single network and no name into the only one that they fit. Optimisers start anew.

    Weights themselves and not their moving averages, for the networks of a run fit each other; an average is taken
    where its file is named (latest_ema_net_G.pth).

    Returns what was initialised and what was not, in one line.

    UsageError: nothing to initialise, or weights that do not fit. Nothing is changed then.
    """
    found = read_all([Path(path) for path in model.config.init_from])
    networks = {name: net for name, net in model.networks.items() if net.state_dict()}
    if "" in found:
        name = _only_fit(networks, found[""])
        if name in found:
            raise UsageError(f"init_from: {found[''].source} and {found[name].source} both hold {name}")
        found[name] = found.pop("")
    taken = {name: found[name] for name in networks if name in found}
    if not taken:
        raise UsageError(
            f"init_from: {', '.join(weights.source for weights in found.values())}: holds {', '.join(found)}, and "
            f"{model.name} has {', '.join(networks)}"
        )
    states = {name: _fitting(name, networks[name], weights) for name, weights in taken.items()}
    for name, state in states.items():
        networks[name].load_state_dict(state)
        if name in model.averages:  # which follows from the first step on, and may be looked at before
            model.averages[name].module.load_state_dict(networks[name].state_dict())
    told = ", ".join(f"{name} from {weights.source}" for name, weights in taken.items())
    anew = [name for name in networks if name not in taken]
    unused = [name for name in found if name not in taken]
    told += f"; {', '.join(anew)} from chance" if anew else ""
    told += f"; of no use here: {', '.join(unused)}" if unused else ""
    return f"starting weights: {told}"


def read_all(paths: list[Path]) -> dict[str, Weights]:
    """All networks that these files and folders hold, by name."""
    found: dict[str, Weights] = {}
    for path in paths:
        try:
            if not path.exists():
                raise UsageError(f"{path}: no such file or folder")
            files = files_in(path, averages=False).values() if path.is_dir() else [path]
            for file in files:
                for name, weights in networks_in(file, averages=False).items():
                    if name in found:
                        raise UsageError(f"{found[name].source} and {weights.source} are both of {name or 'one name'}")
                    found[name] = weights
        except UsageError as error:
            raise UsageError(f"init_from: {error}") from None
    return found


def _only_fit(networks: dict[str, nn.Module], weights: Weights) -> str:
    """The name of the network that weights without a name are of."""
    fits, shared = [], {}
    for name, net in networks.items():
        shared[name] = len(net.state_dict().keys() & weights.state.keys())
        try:
            fitting(net, weights.state, "")
            fits.append(name)
        except UsageError:
            pass
    if len(fits) > 1:
        raise UsageError(
            f"init_from: {weights.source}: is of {' or '.join(fits)}; its name must tell, as latest_net_{fits[0]}.pth"
        )
    if fits:
        return fits[0]
    if not any(shared.values()):
        raise UsageError(f"init_from: {weights.source}: none of its keys is of one of {', '.join(networks)}")
    return max(shared, key=lambda name: shared[name])


def _fitting(name: str, net: nn.Module, weights: Weights) -> dict[str, torch.Tensor]:
    where = f"init_from: {weights.source} does not fit this run's {name}"
    try:
        state = fitting(net, weights.state, where)
        fill(copy.deepcopy(net), state, where)  # all networks are tried before any is changed
        return state
    except UsageError as error:
        raise UsageError(f"{error}{_described(weights)}") from None


def _described(weights: Weights) -> str:
    try:
        with torch.device("meta"):
            found = recognise(weights.state, "", "reference", weights.config)
    except UsageError:
        return ""
    return f"; the file holds a {found[1]}" if found else ""
