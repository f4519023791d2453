"""Run by test_kills.py in a process of its own: FOLDER KILLS SEED.

Trains one tiny run unbroken, then again and again in children that are killed (SIGKILL) at random moments, each going
on from what the one before has left; every run that reaches its end must be the unbroken one, bit for bit. Children are
forked, which saves them the import of torch; so this process must not compute anything itself.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import matplotlib.figure  # noqa: F401  (before the forks)
import numpy as np
import torch._dynamo  # noqa: F401  (optimizers import it, which takes longer than the run)
from PIL import Image
from tiny_runs import same

import kernels
from i2i.files import CHECKPOINT, read_tensors
from i2i.methods.cut import CUTConfig
from i2i.training import checkpoint
from i2i.training.loop import train

LONGEST = 1.2  # seconds until a kill at any moment: the children's start and some steps


def settings(data: Path) -> CUTConfig:
    """18 steps in 6 epochs, of which half have a falling rate; a checkpoint after each, since writing is to be hit."""
    return CUTConfig(
        **{"data": (str(data),), "load_size": 36, "crop_size": 32, "generator": "resnet_5blocks"},
        **{"ngf": 2, "ndf": 2, "num_patches": 4, "feature_width": 8, "ema": 0.9, "n_epochs": 3, "n_epochs_decay": 3},
        **{"save_every": 1, "sample_every": 7, "keep_every": 4},
    )


def fork(run: Path, config: CUTConfig) -> int:
    """The process id of a child that trains, or goes on training, in `run`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resume = checkpoint.read(run) if (run / CHECKPOINT).exists() else None
        train("cut", config, run, resume=resume)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(pid: int, run: Path, wait: bool = True) -> bool:
    """Whether the child has ended, which must be the end of its run."""
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    if found and status:
        raise SystemExit(f"status {status}: {run.with_suffix('.log').read_text()}")
    return bool(found)


def writes(run: Path) -> list[str]:
    """The files of the run that are being written, or that a kill has left so."""
    return [path.name for path in (*run.glob("*.tmp"), *run.glob("pictures/*.tmp"))]


def kill(pid: int, run: Path, rng: random.Random) -> bool:
    """Kill the child: whenever, or in the n-th writing of a checkpoint, or of any file; each a third of the time. False
    if its run ended before."""
    began, delay, half = time.monotonic(), rng.uniform(0, LONGEST), run / f"{CHECKPOINT}.tmp"
    busy = rng.choice((None, half.exists, lambda: bool(writes(run))))
    wanted = rng.randint(1, 5) if busy == half.exists else rng.randint(1, 25) if busy else 0
    there = False
    while wanted or (busy is None and time.monotonic() - began < delay):
        time.sleep(0.0005)  # the children need the core; writing a file takes longer
        if finish(pid, run, wait=False):
            return False
        if busy and there != busy():
            there = not there
            wanted -= there
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def contents(run: Path) -> dict[str, object]:
    """By the names of its files, what a run has left."""
    files = {str(path.relative_to(run)): path for path in sorted(run.rglob("*")) if path.is_file()}
    return {n: read_tensors(p) if p.suffix in (".pt", ".pth") else p.read_bytes() for n, p in files.items()}


def main(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    for name in ("trainA", "trainB"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([len(name), i]).integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    config = settings(folder)
    kernels.backend_report()  # loads the C++ operators
    finish(fork(folder / "whole", config), folder / "whole")
    wanted = contents(folder / "whole")
    done = {"kills": 0, "inside": {}, "without_checkpoint": 0, "runs": 0}
    while True:
        run = folder / f"run{done['runs']}"
        pid = fork(run, config)
        if done["kills"] < kills:
            if kill(pid, run, rng):
                done["kills"] += 1
                for name in writes(run):
                    done["inside"][name] = done["inside"].get(name, 0) + 1
                if not (run / CHECKPOINT).exists():  # nothing to go on from
                    done["without_checkpoint"] += 1
                    shutil.rmtree(run, ignore_errors=True)
                continue
        else:
            finish(pid, run)
        found = contents(run)
        if found.keys() != wanted.keys():
            raise SystemExit(f"{run} has other files: {found.keys() ^ wanted.keys()}")
        other = [name for name in wanted if not same(found[name], wanted[name])]
        if other:
            raise SystemExit(f"{run} differs from the unbroken run in {other}")
        done["runs"] += 1
        if done["kills"] >= kills:
            print(json.dumps(done))
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
