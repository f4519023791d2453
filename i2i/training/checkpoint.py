"""Checkpoints: one file that describes itself, and is either whole or not there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from i2i import distributed
from i2i.config import Config
from i2i.errors import TrainingDiverged, UsageError
from i2i.files import CHECKPOINT, CHECKPOINT_FORMAT, read_tensors, save_tensors
from i2i.methods import METHODS, Method
from i2i.training.schedule import Schedule

PARTS = {
    **{"config": dict, "step": int, "networks": dict, "ema": dict, "optimizers": dict, "schedule": dict},
    **{"scaler": dict, "processes": list},
}


def save(path: Path, model: Method, rates: Schedule, step: int, made_with: dict[str, Any] | None = None) -> None:
    """Write weights (published keys), optimisers, schedulers, random states, configuration and `step`, the number of
    steps done, and what the run was made with (`resuming.facts`). All processes call it, the first one writes.

    The file at `path` is replaced in one go once the new one is whole, and not at all if a weight is not finite.
    """
    require_finite(model, step)
    networks = {name: net.state_dict() for name, net in model.networks.items()}
    states = distributed.gather(own_state(model))
    if distributed.rank():
        return
    state = {
        "format": CHECKPOINT_FORMAT,
        "method": model.name,
        "config": asdict(model.config),
        "step": step,
        "networks": networks,
        "ema": {name: average.state_dict() for name, average in model.averages.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in model.optimizers.items()},
        "schedule": rates.state_dict(),
        "scaler": model.scaler.state_dict(),
        "processes": states,
        "made_with": made_with or {},
    }
    save_tensors(path, state)


def require_finite(model: Method, step: int) -> None:
    """TrainingDiverged if a weight is not; before anything of this step is written."""
    for name, net in model.networks.items():
        for key, tensor in net.state_dict().items():
            if not tensor.isfinite().all():
                raise TrainingDiverged(f"{key} of {name} is not finite after step {step}")


def own_state(model: Method) -> dict[str, Any]:
    """What differs between processes: random states, and what the method holds besides networks."""
    state = {
        "torch": torch.get_rng_state(),
        "rngs": {name: rng.get_state() for name, rng in model.rngs.items()},
        "extra": model.extra_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(model.device)} if model.device.type == "cuda" else {})


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors on the CPU. `path`: the file, or the folder of the run that wrote it."""
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    state = read_tensors(path)
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT or state.get("method") not in METHODS:
        raise UsageError(
            f"{path} is not a training checkpoint of this version of i2i; it has no state to resume from; "
            "name the folder of a run"
        )
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind):
            raise UsageError(f"{path} is damaged: it has no {name} that a run could go on from")
    return state


def restore(state: dict[str, Any], model: Method, rates: Schedule) -> int:
    """Put a checkpoint's state into a model built from its configuration. Returns the number of steps done."""
    check_processes(state)
    try:
        return put_back(state, model, rates)
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UsageError(f"the checkpoint does not fit this version of i2i, or is damaged ({reason})") from error


def check_processes(state: dict[str, Any]) -> None:
    if len(state["processes"]) != distributed.world():
        count = len(state["processes"])
        raise UsageError(
            f"this run was trained by {count} process{'es' * (count > 1)} and goes on exactly only with as many, "
            f"got {distributed.world()}"
        )


def put_back(state: dict[str, Any], model: Method, rates: Schedule) -> int:
    model.graphs.forget()  # optimisers get other tensors
    load_all(model.networks, state["networks"])
    load_all(model.averages, state["ema"])
    load_all(model.optimizers, state["optimizers"])
    for optimizer in model.optimizers.values():
        lay_moments_as_weights(optimizer)
    rates.load_state_dict(state["schedule"])
    model.scaler.load_state_dict(state["scaler"])
    own = state["processes"][distributed.rank()]
    torch.set_rng_state(own["torch"])
    if "cuda" in own and model.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], model.device)
    for name, rng in model.rngs.items():
        rng.set_state(own["rngs"][name])
    model.load_extra_state(own["extra"])
    return state["step"]


def load_all(parts: dict[str, Any], states: dict[str, Any]) -> None:
    for name, part in parts.items():
        part.load_state_dict(states[name])


def lay_moments_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """torch's fused update walks through a weight and its moments by address, whatever their strides; and a machine of
    another memory format may have written these."""
    for weight, held in optimizer.state.items():
        for name, value in held.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                held[name] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)


def config(state: dict[str, Any]) -> Config:
    try:
        return METHODS[state["method"]].Config.from_dict(state["config"])
    except UsageError as error:
        raise UsageError(f"this run was made by another version of i2i, which has other settings: {error}") from None
