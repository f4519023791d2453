"""Command line: `i2i train`, `translate`, `export`, `evaluate`, `list`."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence

import kernels
from i2i.cli import failures
from i2i.cli.parser import build_parser
from kernels import _commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. 0: done; 1: diverged, out of memory or of space; 2: a mistake in what was given; 3: a
    defect of ours; 129, 130, 141, 143: a signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    told = "interrupted; nothing saved since the last checkpoint" if words[:1] == ["train"] else "interrupted"
    return _commands.run(lambda: answer(words), told)


def answer(words: list[str]) -> int:
    """The exit status; whatever goes wrong is told in one sentence."""
    kernels.keep_freed_memory()  # every step allocates the same sizes again
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # names that this terminal cannot show
    threading.excepthook = failures.from_thread
    try:
        if words[:1] == ["train"]:
            from i2i.cli import train  # with all systems, which the other commands do without

            return train.run(words[1:])
        given = build_parser().parse_args(words)
        return given.run(given)
    except BrokenPipeError:
        raise
    except Exception as error:
        status, sentence = failures.explain(error)
        if status == failures.DEFECT:
            traceback.print_exception(error)
        print(f"error: {sentence}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
