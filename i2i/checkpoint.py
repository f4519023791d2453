"""Checkpoints: one file that describes itself, and is either whole or not there."""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from i2i.config import Config
from i2i.cut import CUT
from i2i.errors import TrainingDiverged, UsageError

NAME = "checkpoint.pt"
FORMAT = 1


def save(path: Path, model: CUT, step: int) -> None:
    """Write weights (published keys), optimisers, random states, configuration and `step`, the number of steps done.

    The file at `path` is replaced in one go once the new one is whole, and not at all if a weight is not finite.
    """
    weights = {name: net.state_dict() for name, net in model.networks.items()}
    for name, entries in weights.items():
        for key, tensor in entries.items():
            if not tensor.isfinite().all():
                raise TrainingDiverged(f"{key} of {name} is not finite after step {step}")
    state = {
        "format": FORMAT,
        "method": "cut",
        "config": asdict(model.config),
        "step": step,
        **weights,
        "optimizers": {name: optimizer.state_dict() for name, optimizer in model.optimizers.items()},
        "rng": {"torch": torch.get_rng_state(), "patches": model.patch_rng.get_state()},
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors on the CPU. `path`: the file, or the folder of the run that wrote it."""
    if path.is_dir():
        path = path / NAME
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not a checkpoint of i2i, or is damaged ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UsageError(f"{path} is not a training checkpoint of this version of i2i; it has no state to resume from")
    return state


def restore(state: dict[str, Any], model: CUT) -> int:
    """Put a checkpoint's state into a model built from its configuration. Returns the number of steps done."""
    for name, net in model.networks.items():
        net.load_state_dict(state[name])
    for name, optimizer in model.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    torch.set_rng_state(state["rng"]["torch"])
    model.patch_rng.set_state(state["rng"]["patches"])
    return state["step"]


def config(state: dict[str, Any]) -> Config:
    return Config.from_dict(state["config"])
