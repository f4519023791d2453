"""Child processes with a time limit. What touches the device runs in one, so that a kernel that hangs, or breaks a CUDA
context, costs one part."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.engine import machine
from benchmarks.engine.work import Json
from benchmarks.proof.part import Asked, NotHere, OutOfTime

GRACE = 5.0  # seconds of a limit: for a process that was asked to end, to write what it has


def environment(**more: str) -> dict[str, str]:
    """For a child that imports this repository."""
    path = os.pathsep.join(filter(None, (str(machine.ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **more}


def start(command: Sequence[str], env: Mapping[str, str], printed: IO[str] | None = None) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the parent, which then ends the child. printed: where its output goes."""
    return subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, start_new_session=True
    )


def wait(process: subprocess.Popen[bytes], until: float) -> int:
    """Its exit status. OutOfTime: it had to be ended. Whatever happens, nothing of its session is left running."""
    try:
        return process.wait(max(0.0, until - GRACE - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end, and makes it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):  # it and its own children have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measured_apart(name: str, asked: Asked, found: Json) -> None:
    """Runs `measure` of benchmarks.proof.NAME in a child (child.py), and puts what it found into `found`, also where
    it fails or its time is over."""
    answers = asked.folder / f"{name}.jsonl"
    # the child stops by itself when no time is left for another row, or else is made to
    soft = asked.until - 2 * GRACE
    given = {"device": str(asked.device), "until": soft, "folder": str(asked.folder), "sizes": asked.sizes}
    command = [sys.executable, "-m", "benchmarks.proof.child", name, str(answers), json.dumps(given)]
    process = start(command, environment())
    try:
        status = wait(process, asked.until)
    finally:
        ended = take(answers, found)
    if "not_here" in ended:
        raise NotHere(ended["not_here"])
    if "late" in ended:
        raise OutOfTime(ended["late"])
    if "error" in ended:
        raise RuntimeError(ended["error"])
    if status:
        raise RuntimeError(f"its process ended with status {status}, see above")


def take(answers: Path, found: Json) -> Json:
    """Puts the lines of a child into `found`; returns what it said about its end. A line that was cut off is left
    out."""
    ended: Json = {}
    lines = answers.read_text().splitlines() if answers.exists() else []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            answer = json.loads(line)
            if "row" in answer:
                found.setdefault(answer["to"], []).append(answer["row"])
            else:
                ended |= answer.pop("end", {})
                found |= answer
    return ended
