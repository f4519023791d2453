"""The child of processes.measured_apart: `python -m benchmarks.proof.child NAME ANSWERS GIVEN`. What
benchmarks.proof.NAME.measure finds goes into the file ANSWERS line by line, so that nothing of it is lost."""

from __future__ import annotations

import gc
import importlib
import json
import sys
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.engine.work import Json
from benchmarks.proof.part import Asked, NotHere, OutOfTime


class Answers:
    """What a part's `measure` writes into."""

    def __init__(self, file: IO[str]):
        self._file = file

    def row(self, to: str, row: Json) -> None:
        """One more row of the table `to`."""
        self._line({"to": to, "row": row})

    def set(self, **facts: Any) -> None:
        self._line(facts)

    def end(self, **how: str) -> None:
        self._line({"end": how})

    def _line(self, value: Json) -> None:
        print(json.dumps(value), file=self._file, flush=True)


def main() -> int:
    name, answers, given = sys.argv[1:]
    given = json.loads(given)
    asked = Asked(torch.device(given["device"]), given["until"], Path(given["folder"]), given["sizes"])
    with open(answers, "w") as file:
        out = Answers(file)
        try:
            measure = importlib.import_module(f"benchmarks.proof.{name}").measure
            gc.freeze()  # every capture of a CUDA graph and every row collects garbage, all that was imported with it
            measure(asked, out)
            return 0
        except NotHere as error:
            out.end(not_here=str(error))
        except OutOfTime as error:
            out.end(late=str(error))
        except KeyboardInterrupt:  # the parent says why
            return 1
        except Exception as error:
            out.end(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
    return 0


if __name__ == "__main__":
    sys.exit(main())
