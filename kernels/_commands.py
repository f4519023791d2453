"""How the commands of this distribution end when they are interrupted: in one line, with the status a shell expects.

Imported before torch, whose import takes seconds: Ctrl-C in them would print forty lines of imports.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

PROGRAMS = ("i2i", "kernels-report", "kernels-bench")
COMMANDS = ("steps", "zoo", "curves", "profile", "launches", "prove", "foreign")
MODULES = ("i2i", "kernels.fusing", "benchmarks", *(f"benchmarks.{name}" for name in COMMANDS))  # for python -m
INTERRUPTED, BROKEN_PIPE = 128 + signal.SIGINT, 128 + 13


def run(body: Callable[[], int], told: str = "interrupted") -> int:
    """The status that `body` returns; or, with one line on stderr, that of Ctrl-C; or, without one, that of a reader
    who has left (`i2i list | head -1`)."""
    try:
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = body()
        sys.stdout.flush()  # here, and not at exit, where Python would complain on its own
        return status
    except KeyboardInterrupt:
        tell(told)
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return BROKEN_PIPE
    except OSError as error:
        drop_output()
        tell(f"error: {error.filename or 'standard output'}: {error.strerror or error}")
        return 1
    finally:
        if _of_ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end)  # while Python waits for threads


def tell(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except OSError:  # the terminal has been closed
        pass


def drop_output() -> None:
    """What is still in its buffer cannot be written; Python would complain at its exit."""
    if _of_ours:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_of_ours() -> bool:
    """Whether this process is one of the commands: in a notebook, Ctrl-C during an import is Python's business."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or someone else's
        return False
    if sys.argv[:1] == ["-m"]:  # the package is imported, its module not yet
        words = sys.orig_argv
        return "-m" in words and words[words.index("-m") + 1 :][:1] in [[name] for name in MODULES]
    return os.path.splitext(os.path.basename(sys.argv[0] if sys.argv else ""))[0] in PROGRAMS


def _end(number: int, frame: FrameType | None) -> None:
    """Nothing has begun, or all is done: nothing to clean up."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


_of_ours = _is_of_ours()
if _of_ours:
    signal.signal(signal.SIGINT, _end)  # in the main thread, where commands begin
