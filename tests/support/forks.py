"""Python programs in processes of their own that need not import torch, which takes seconds: each is a fork of one
process that has imported it, and nothing of this repository, and has computed nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRINTED = {1: "out", 2: "err"}  # files of a folder, by descriptor


class Forks:
    def __init__(self, folder: Path):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        """As `python -c code` with these variables added to the environment and this repository on the path."""
        request = {
            "code": code,
            "cwd": str(cwd),
            "environment": {**os.environ, "PYTHONPATH": str(ROOT), **environment},
            "printed": str(self.folder),
        }
        print(json.dumps(request), file=self.process.stdin)
        status = json.loads(self.process.stdout.readline())
        out, err = ((self.folder / name).read_text() for name in PRINTED.values())
        return subprocess.CompletedProcess(code, status, out, err)

    def close(self) -> None:
        self.process.communicate()  # no more requests


# ---- in the other process ------------------------------------------------------------------------------------------


def become(request: dict) -> None:
    for number, name in PRINTED.items():
        os.dup2(os.open(f"{request['printed']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0:1] = ["", *request["environment"]["PYTHONPATH"].split(os.pathsep)]
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})


def status_of(request: dict) -> int:
    """In the child: the exit status of an interpreter."""
    try:
        become(request)
        return 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1


def main() -> None:
    import torch._dynamo  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                status = status_of(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
