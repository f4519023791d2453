"""What a run is made with, and whether it can go on with what it is given now: exactly, or not at all."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import kernels
from i2i import distributed
from i2i.config import Config
from i2i.data import Dataset
from i2i.devices import format_name
from i2i.errors import UsageError
from i2i.training import checkpoint

# May be given anew with resume: nothing of what was computed depends on them (but for the last bits of learning rates,
# on cuda_graphs). Of data, its place may change.
RESUMABLE = {
    *("data", "steps", "n_epochs", "n_epochs_decay", "num_threads"),
    *("save_every", "sample_every", "keep_every", "tensorboard", "cuda_graphs"),
}
ROUNDING = ("i2i", "torch", "device", "threads", "memory format")  # of facts: with others, sums are rounded otherwise


def facts(data: Dataset, device: torch.device, precision: str) -> dict[str, Any]:
    """What a checkpoint says of how its run was made, besides its settings. `precision`: of these."""
    return {
        "i2i": kernels.__version__,
        "torch": str(torch.__version__),
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "memory format": format_name(kernels.preferred_memory_format(device, getattr(torch, precision))),
        "images": len(data),
        "pictures": [[name, len(pictures), digest(pictures)] for name, pictures in listings(data).items()],
    }


def listings(data: Any) -> dict[str, list[tuple[Any, ...]]]:
    """By what people call them, the pictures that `data` reads from files, in its order: names and sizes, or labels.
    Where they lie does not matter, and what is in them is not looked at: that would read them all."""
    folders = getattr(data, "folders", None)
    if folders is not None:
        names = ("A", "B") if len(folders) == 2 else ("A and B",)
        return {
            name: named(data.limited(folder.pictures), folder.place if folder.place.is_dir() else None)
            for name, folder in zip(names, folders, strict=True)
        }
    entries = getattr(getattr(data, "source", None), "entries", None)
    if entries is not None:
        pictures, labels = zip(*entries)
        return {"the data": list(zip(named(pictures), labels))}
    return {}  # the sample photographs


def named(pictures: Sequence[Any], root: Path | None = None) -> list[tuple[Any, ...]]:
    """Of each picture, opened or a path alone: its path from `root` (by default, the folder that holds them all), and
    what else is known of it."""
    paths = [Path(getattr(picture, "path", picture)).absolute() for picture in pictures]
    if root is None:
        try:
            root = Path(os.path.commonpath([path.parent for path in paths]))
        except ValueError:  # on several drives
            root = Path()
    root = root.absolute()
    return [
        (
            (path.relative_to(root) if path.is_relative_to(root) else path).as_posix(),
            *(getattr(picture, name, 0) for name in ("width", "height", "page")),
        )
        for picture, path in zip(pictures, paths)
    ]


def digest(entries: Iterable[tuple[Any, ...]]) -> str:
    found = hashlib.sha256()
    for entry in entries:
        found.update(repr(entry).encode())  # which writes surrogates as text
    return found.hexdigest()[:16]


def check_settings(state: dict[str, Any], method: str, config: Config) -> None:
    """UsageError if the run of checkpoint `state` cannot go on as `config` says; before anything is opened."""
    if state["method"] != method:
        raise UsageError(f"method was {state['method']} in this run and cannot become {method}")
    before = checkpoint.config(state)
    for name in sorted(vars(config).keys() - RESUMABLE):
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            free = ", ".join(sorted(RESUMABLE))
            raise UsageError(f"{name} was {old} in this run and cannot become {new}; what may change: {free}")
    checkpoint.check_processes(state)


def check_data(state: dict[str, Any], made_with: dict[str, Any]) -> None:
    """UsageError if the pictures are not those that the run was trained on: its order and its epochs hang on them.
    `made_with`: the facts of now."""
    then = state.get("made_with") or {}
    if "images" not in then:
        return check_epochs(state, made_with["images"])
    changes = []
    before = {name: (count, sum_) for name, count, sum_ in then["pictures"]}
    for name, count, sum_ in made_with["pictures"]:
        old_count, old_sum = before.get(name, (None, None))
        if old_count is not None and old_count != count:
            changes.append(f"{name} had {old_count} pictures and has {count} now")
        elif old_sum != sum_:
            changes.append(f"{name} has pictures of other names, sizes or labels than it had")
    if not changes and then["images"] != made_with["images"]:
        changes.append(f"a pass over them was {then['images']} images and is {made_with['images']} now")
    if changes:
        refuse("; ".join(changes))


def check_epochs(state: dict[str, Any], images: int) -> None:
    """The same of a checkpoint of before such facts were kept: its schedule has counted the epochs."""
    per_step = state["config"].get("batch_size", 1) * len(state["processes"])
    counted = {part.get("last_epoch") for part in state["schedule"].get("schedulers", {}).values()}
    now = state["step"] * per_step // images
    if counted and counted != {now}:
        then = ", ".join(map(str, sorted(counted, key=str)))
        refuse(f"step {state['step']} was in epoch {then} (from 0), and with the {images} images of now it is in {now}")


def refuse(changes: str) -> None:
    raise UsageError(
        f"the pictures of this run have changed ({changes}), and it goes on exactly only with those it began with: "
        "put them back, or begin a new run (init_from=RUN starts one from these weights)"
    )


def tell_changes(state: dict[str, Any], made_with: dict[str, Any]) -> None:
    """A line on stderr where the run goes on as well as before, but not bit for bit."""
    then = {"memory format": "channels last"} | (state.get("made_with") or {})  # what it was before it was noted
    changes = [
        f"{name} was {then[name]} and is {made_with[name]}"
        for name in ROUNDING
        if name in then and then[name] != made_with[name]
    ]
    if changes and distributed.rank() == 0:
        print(f"not bit for bit what an unbroken run would be: {'; '.join(changes)}", file=sys.stderr)


def identity(state: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two checkpoints one: runs are repeatable, so those of the same settings and step hold the same."""
    settings = {k: v for k, v in vars(checkpoint.config(state)).items() if k not in RESUMABLE}
    return state["method"], state["step"], sorted(settings.items())
