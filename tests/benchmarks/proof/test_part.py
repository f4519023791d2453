"""The frame of a part: whatever it raises is its own affair, and what it had found stays."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch

from benchmarks.proof import processes
from benchmarks.proof.part import (
    FAILED,
    INTERRUPTED,
    LATE,
    NOT_HERE,
    OK,
    Asked,
    NotHere,
    OutOfTime,
    Part,
    run_part,
    share,
)

CPU = torch.device("cpu")


def part(run, seconds: float = 10.0, gpu: bool = False) -> Part:
    return Part("planted", "for a test", seconds, gpu, run, {"cpu": {"size": 1}})


def raising(error: BaseException):
    def run(asked, found):
        found["rows"] = [1, 2]
        raise error

    return run


@pytest.mark.parametrize(
    "error, status, reason",
    [
        (ValueError("no\n such thing"), FAILED, "ValueError: no such thing"),
        (AssertionError("3 tests failed"), FAILED, "AssertionError: 3 tests failed"),
        (OutOfTime("in the second row"), LATE, "after 7 s, in the second row"),
        (OutOfTime(), LATE, "after 7 s"),
        (NotHere("pytest is not installed"), NOT_HERE, "pytest is not installed"),
        (KeyboardInterrupt(), INTERRUPTED, "by Ctrl-C"),
        (SystemError(), FAILED, "SystemError:"),
    ],
)
def test_what_a_part_raises_becomes_its_status(tmp_path, error, status, reason):
    found = run_part(part(raising(error)), CPU, 7.0, tmp_path)
    assert (found["status"], found["reason"], found["rows"]) == (status, reason, [1, 2])
    assert found["limit_s"] == 7.0 and 0 <= found["seconds"] < 5


def test_a_part_gets_its_sizes_and_its_time(tmp_path):
    given = []
    found = run_part(part(lambda asked, found: given.append(asked)), CPU, 7.0, tmp_path)
    run_part(part(lambda asked, found: given.append(asked)), CPU, 7.0, tmp_path, {"size": 2})
    assert found["status"] == OK and [asked.sizes for asked in given] == [{"size": 1}, {"size": 2}]
    assert given[0].folder == tmp_path and 0 < given[0].until - time.monotonic() <= 7


def test_what_needs_a_gpu_is_not_begun_without_one(tmp_path):
    found = run_part(part(raising(ValueError("begun")), gpu=True), CPU, 7.0, tmp_path)
    assert (found["status"], found["reason"]) == (NOT_HERE, "needs a GPU")


def test_time_that_is_left_over_goes_to_the_parts_behind():
    parts = [part(None, seconds) for seconds in (100.0, 60.0, 40.0)]
    assert share(parts, 200.0) == 100.0
    assert share(parts[1:], 200.0) == 120.0  # nothing was used by the first
    assert share(parts[2:], 15.0) == 15.0


# ---- child processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def little_grace(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 1.0)


def started(code: str):
    return processes.start([sys.executable, "-c", code], processes.environment())


def test_a_child_that_ends_gives_its_status():
    assert processes.wait(started("raise SystemExit(3)"), time.monotonic() + 60) == 3


def test_a_child_that_takes_too_long_may_write_what_it_has(tmp_path, little_grace):
    file = tmp_path / "left"
    code = f"""
import time
try:
    open({str(file)!r} + ".begun", "w").close()
    time.sleep(60)
except KeyboardInterrupt:
    open({str(file)!r}, "w").write("so far")
"""
    process = started(code)
    while not (tmp_path / "left.begun").exists():
        time.sleep(0.01)
    with pytest.raises(OutOfTime):
        processes.wait(process, time.monotonic() + 1.2)
    assert file.read_text() == "so far"


def test_a_child_that_does_not_listen_is_killed_with_its_own(tmp_path, little_grace):
    pid = tmp_path / "pid"
    code = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open({str(pid)!r} + ".tmp", "w").write(str(own.pid))
import os; os.rename({str(pid)!r} + ".tmp", {str(pid)!r})
time.sleep(60)
"""
    process = started(code)
    while not pid.exists():
        time.sleep(0.01)
    with pytest.raises(OutOfTime):
        processes.wait(process, time.monotonic() + 1.0)
    assert process.poll() is not None and gone(int(pid.read_text()))


def gone(pid: int) -> bool:
    """Within a few seconds; of a process whose parent has ended, a zombie is gone too."""
    for _ in range(500):
        try:
            os.kill(pid, 0)
            state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def planted(monkeypatch, tmp_path, code: str, seconds: float = 60.0) -> dict:
    """measured_apart with a child that runs `code`, in which `answers` names its file; what was found."""
    start = processes.start

    def instead(command, env):
        assert command[1:4] == ["-m", "benchmarks.proof.child", "planted"]
        return start([sys.executable, "-c", f"answers = {command[4]!r}\n{code}"], env)

    monkeypatch.setattr(processes, "start", instead)
    found: dict = {}
    asked = Asked(CPU, time.monotonic() + seconds, tmp_path, {})
    try:
        processes.measured_apart("planted", asked, found)
    except Exception as error:
        found["raised"] = error
    return found


ROWS = """
file = open(answers, "w")
for line in '{"set": 1}', '{"to": "rows", "row": {"a": 1}}', '{"to": "rows", "row": {"a": 2}}':
    print(line, file=file, flush=True)
"""


def test_rows_of_a_child_are_found(monkeypatch, tmp_path):
    assert planted(monkeypatch, tmp_path, ROWS) == {"set": 1, "rows": [{"a": 1}, {"a": 2}]}


@pytest.mark.parametrize(
    "end, kind, message",
    [
        ("""print('{"end": {"error": "RuntimeError: out of memory"}}', file=file)""", RuntimeError, "out of memory"),
        ("""print('{"end": {"late": "2 of 9 rows"}}', file=file)""", OutOfTime, "2 of 9 rows"),
        ("""print('{"end": {"not_here": "no skimage"}}', file=file)""", NotHere, "no skimage"),
        ('file.write(\'{"to": "ro\'); file.flush(); import os; os.kill(os.getpid(), 11)', RuntimeError, "status -11"),
    ],
)
def test_rows_of_a_child_survive_its_end(monkeypatch, tmp_path, end, kind, message):
    found = planted(monkeypatch, tmp_path, ROWS + end)
    assert found["rows"] == [{"a": 1}, {"a": 2}] and "end" not in found
    assert type(found["raised"]) is kind and message in str(found["raised"])


def test_rows_of_a_child_that_hangs_survive_it(monkeypatch, tmp_path, little_grace):
    found = planted(monkeypatch, tmp_path, ROWS + "import time; time.sleep(60)", seconds=4.0)
    assert type(found["raised"]) is OutOfTime and found["rows"] == [{"a": 1}, {"a": 2}]


def test_ctrl_c_ends_the_child_and_keeps_its_rows(monkeypatch, tmp_path, little_grace):
    waited = []

    def interrupted(process, until):
        while not (tmp_path / "planted.jsonl").exists() or len((tmp_path / "planted.jsonl").read_text()) < 60:
            time.sleep(0.01)
        waited.append(process)
        processes.end(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "wait", interrupted)
    found: dict = {}
    start = processes.start
    monkeypatch.setattr(
        processes,
        "start",
        lambda command, env: start(
            [sys.executable, "-c", f"answers = {command[4]!r}\n{ROWS}import time; time.sleep(60)"], env
        ),
    )
    with pytest.raises(KeyboardInterrupt):
        processes.measured_apart("planted", Asked(CPU, time.monotonic() + 60, tmp_path, {}), found)
    assert found["rows"] == [{"a": 1}, {"a": 2}] and waited[0].poll() is not None
