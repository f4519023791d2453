"""What goes wrong in a command, in one sentence and an exit status."""

from __future__ import annotations

import errno
import platform
import re
import threading

import torch

import kernels
from i2i import distributed
from i2i.errors import NotSaved, TrainingDiverged, UsageError

DEFECT = 3
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = "DefaultCPUAllocator|out of memory|cannot allocate memory"  # RuntimeErrors of torch


def from_thread(given: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets a full disk first, and its traceback is none for people: `flush` meets the same."""
    if not isinstance(given.exc_value, OSError):
        threading.__excepthook__(given)


def explain(error: Exception) -> tuple[int, str]:
    """(exit status, what to tell)."""
    if isinstance(error, (NotSaved, TrainingDiverged)):
        return 1, str(error)
    if isinstance(error, (UsageError, kernels.BackendUnavailable)):
        return 2, str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search(NO_MEMORY, str(error), re.IGNORECASE):
        return 1, "the device ran out of memory; try a smaller crop_size, batch_size or width"
    if distributed.lost(error):
        return 1, "another process of this run has ended, and this one with it; what it printed says why"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else "standard output: " if error.errno in NO_SPACE else ""
        return 1 if error.errno in NO_SPACE else 2, f"{where}{error.strerror}" if error.strerror else str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in ("i2i", "kernels"):
        return 2, f"this needs the package {error.name}: pip install {error.name}"
    return DEFECT, (
        f"{type(error).__name__}: this is a defect of i2i {kernels.__version__} and no mistake of yours. Please report "
        f"it in the project's issue tracker, with the lines above, the command, and what kernels-report prints "
        f"(torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()})"
    )
