"""Files that are either whole or not there, and reading those of others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from i2i.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` in one go when the block ends; nothing is left if it fails.

    On disk before it is renamed: else a power cut can leave the new name on an empty file.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: Path) -> Any:
    """The contents of a file that torch.save wrote, on the CPU. It may be of anyone's making: nothing in it is run.

    UsageError: no such file, or a damaged one, or one that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: bytes that are no pickle make the unpickler stumble in many ways
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise UsageError(
                f"{path}: holds a pickled {refused[1]}, not only tensors, and loading that could run code of whoever "
                "wrote the file; save the network's state_dict() instead"
            ) from None
        raise UsageError(f"{path}: damaged, or no file of weights ({type(error).__name__})") from None
