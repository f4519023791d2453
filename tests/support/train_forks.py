"""Run by test_distributed.py in a process of its own: processes in forks, which spares each the import of torch.

A line on stdin, [processes, name, arguments], starts so many as torchrun would; their ids are the answer. `train` is
`i2i train`, other names are functions of train_steps.py, whose results are printed as JSON. What they print goes to
the files RANK.out and RANK.err of the working folder. A line `null` waits for them; their exit statuses are the answer.
This process must not compute anything itself.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback

import matplotlib.figure  # noqa: F401  (before the forks)
import torch
import torch._dynamo  # noqa: F401  (optimizers import it)
import train_steps

import kernels
from i2i import distributed
from i2i.__main__ import main
from i2i.cli import train  # noqa: F401


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(name: str, arguments: list) -> int:
    if name == "train":
        return main(["train", *arguments])
    with distributed.processes(torch.device("cpu")):
        print(json.dumps(getattr(train_steps, name)(*arguments)))
    return 0


def fork(name: str, arguments: list, rank: int, environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for number, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{rank}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(environment)
        status = run(name, arguments)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def answer(request: list | None) -> list[int]:
    if request is None:
        found = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
        running.clear()
        return found
    processes, name, arguments = request
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(processes):
        own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        running.append(fork(name, arguments, rank, own))
    return running


running: list[int] = []
kernels.backend_report()  # loads the C++ operators
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
