"""The folders that builds of the C++ operators are kept in, and how a process knows that one is whole.

A folder holds one build: the library and build.json, which has the library's SHA-256 and what made it. A library that
was cut short or altered may end the process by a signal while it is loaded, so none is loaded before its digest was
compared (a few milliseconds for its 3.5 MB).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MODULE = "_kernels_cpu"
LIBRARY, RECORD = f"{MODULE}.so", "build.json"
PATIENCE = 2.0  # seconds that a process waits for another one's build before it says so


class BuildError(RuntimeError):
    """The C++ operators cannot be built or loaded here; the message says why."""


def say(text: str, end: str = "\n") -> None:
    """To standard error, where there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # a pipe nobody reads, a closed stream
            print(text, file=sys.stderr, end=end, flush=True)


def cache_root() -> Path:
    """`KERNELS_CACHE`, else in the user's cache directory (`XDG_CACHE_HOME`, else ~/.cache). Empty counts as unset."""
    own = os.environ.get("KERNELS_CACHE", "")
    if own.strip():
        try:
            return Path(own).expanduser().absolute()
        except RuntimeError:
            raise BuildError(f"KERNELS_CACHE={own!r}: the system knows no such home directory") from None
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # which its specification says to pass over
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            raise BuildError(
                "this user has no home directory to keep the build in (KERNELS_CACHE names a folder for it)"
            ) from None
    return base.absolute() / "fused-i2i-kernels"


def glibc() -> list[int]:
    """Version of the C library, as [2, 36]; empty where it is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return [int(part) for part in version.split(".")] if name == "glibc" else []
    except (AttributeError, OSError, ValueError):
        return []


class Build(NamedTuple):
    library: Path
    command: list[str]
    compiler: str  # the first line of its --version


def whole_build(folder: Path, name: str = LIBRARY) -> Build | None:
    """The build in this folder, if it is whole and made for this C library or an older one."""
    library = folder / name
    try:
        record = json.loads((folder / RECORD).read_bytes())
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        if record["sha256"] != digest or record["glibc"] > glibc():
            return None
        return Build(library, [str(word) for word in record["command"]], str(record["compiler"]))
    except (OSError, ValueError, TypeError, LookupError):
        return None


def keep(built: Path, command: list[str], compiler: str, folder: Path, **more: object) -> Build:
    """Moves a library that was just built into its folder, with its record, in which `more` is kept too.

    It lies in a folder of its own on the same file system. Whoever reads between the two renames finds a digest that
    does not match, waits for the lock and looks again.
    """
    with open(built, "rb") as handle:
        os.fsync(handle.fileno())  # a disk that filled up may say so only now
        digest = hashlib.sha256(handle.read()).hexdigest()
    record = built.with_name(RECORD)
    about = {"sha256": digest, "glibc": glibc(), "command": command, "compiler": compiler, **more}
    record.write_text(json.dumps(about), encoding="utf-8")
    os.replace(built, folder / built.name)
    os.replace(record, folder / RECORD)
    return Build(folder / built.name, command, compiler)


def clear(folder: Path) -> None:
    """What builders that were killed have left in it. For the one that has the lock."""
    for left in folder.glob("work-*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[bool]:
    """One builder at a time; the operating system frees the lock of a process that dies. Yields whether there is a
    lock: where the system or the file system has none, builders race and the renames pick one."""
    with open(path, "a") as handle:
        yield _lock(handle.fileno(), path, what)


def _lock(handle: int, path: Path, what: str) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    start, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # ENOLCK, EOPNOTSUPP and others of network file systems
            return False
        if not said and time.monotonic() - start > PATIENCE:
            say(f"kernels: waiting for another process that compiles {what} (it holds {path}) ...")
            said = True
