"""The folder of a run: of one run at a time, and never one that holds another's work."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from i2i import distributed
from i2i.errors import UsageError
from i2i.files import CHECKPOINT, make_folder
from i2i.training import checkpoint, resuming

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

LOCK = "run.lock"
WORK = (CHECKPOINT, "*_net_*.pth", "losses.csv", "losses.png", "pictures/step_*.png", "tensorboard/*")
BEGUN = (f"{CHECKPOINT}.tmp", "*_net_*.pth.tmp", "losses.csv.tmp", "losses.png.tmp", "pictures/step_*.png.tmp")


@contextmanager
def claimed(output: Path | None, method: str, resume: dict[str, Any] | None) -> Iterator[Path]:
    """The folder to write into, this run's alone until the block ends. `output` None: the first free of
    runs/<method>-1, -2, ...

    UsageError where another run is writing; where a new run would overwrite weights, losses or checkpoints that are
    there; where a run would go on from another checkpoint than the folder's newest (`resume`). A folder that was made
    here is taken away again if nothing was written. Of several processes, the first one claims for all.
    """
    with ExitStack() as stack:
        yield distributed.first(lambda: stack.enter_context(_own(output, method, resume)))


@contextmanager
def _own(output: Path | None, method: str, resume: dict[str, Any] | None) -> Iterator[Path]:
    wanted = output or Path("runs")
    made = [place for place in (wanted, *wanted.parents) if not place.exists()]
    try:
        make_folder(wanted)
        if output is None:
            output = _next(wanted, method)
            made.insert(0, output)
        with _locked(output):
            _refuse_to_overwrite(output, resume)
            for pattern in BEGUN:  # of a run that was killed while it wrote them
                for path in output.glob(pattern):
                    path.unlink()
            yield output
    finally:
        for place in made:
            with suppress(OSError):  # not empty
                place.rmdir()


def _next(folder: Path, method: str) -> Path:
    """Made, not only found: another run that starts at the same moment gets the next one."""
    for number in range(1, 10**6):
        with suppress(FileExistsError):
            (folder / f"{method}-{number}").mkdir()
            return folder / f"{method}-{number}"
    raise UsageError(f"{folder} holds a million runs of {method}: choose another --output")


def _refuse_to_overwrite(folder: Path, resume: dict[str, Any] | None) -> None:
    if (folder / CHECKPOINT).exists():
        if resume is None:
            raise UsageError(f"{folder} holds a run already: go on with --resume {folder}, or choose another --output")
        newest = checkpoint.read(folder)
        if resuming.identity(newest) != resuming.identity(resume):
            raise UsageError(
                f"{folder / CHECKPOINT} is of step {newest['step']} of {newest['method']}, and going on from "
                f"step {resume['step']} of {resume['method']} would overwrite it: name another output"
            )
        return
    there = (path for pattern in WORK for path in folder.glob(pattern))
    found = sorted({path.name for path in there if path.is_symlink() or path.stat().st_size})
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UsageError(
            f"{folder} holds {found[0]}{more}, which this run did not write and would overwrite: choose another "
            "--output (or --name)"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A lock of the operating system's on a file in `folder`, which ends with the process, however that ends."""
    path = folder / LOCK
    try:
        file = _acquire(path)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written into ({error.strerror or error})") from None
    try:
        with suppress(OSError):  # for people; a full disk hinders nothing yet
            os.ftruncate(file, 0)
            os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # still locked: who has opened it meanwhile sees that it is no longer there
        os.close(file)


def _acquire(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                _lock(file)
            except BlockingIOError:
                holder = os.pread(file, 200, 0).decode(errors="replace") if hasattr(os, "pread") else ""
                raise UsageError(
                    f"another run is writing into {path.parent}{f' ({holder})' if holder else ''}: wait for its end, "
                    "or choose another --output"
                ) from None
            except OSError as error:
                print(
                    f"{path.parent} is on a file system without locks ({error.strerror}): nothing hinders a second "
                    "run from writing into it",
                    file=sys.stderr,
                )
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # of a run that ended between our opening and locking


def _lock(file: int) -> None:
    """BlockingIOError if another process has it; another OSError where there are no locks."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(file, 1 << 30, os.SEEK_SET)  # Windows locks bytes, and locked ones cannot be read
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]  (on Windows alone)
    except PermissionError as error:
        raise BlockingIOError(error.errno, error.strerror) from None
    finally:
        os.lseek(file, 0, os.SEEK_SET)
