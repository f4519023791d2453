"""The part that runs compute-sanitizer, with an executable that stands for it; and the calls it watches."""

from __future__ import annotations

import stat
import time

import pytest
import torch
from support.emulated import emulation

from benchmarks.proof import sanitizer, small_calls
from benchmarks.proof.part import Asked, NotHere, OutOfTime
from kernels import _cuda

CLEAN = {
    "memcheck": "========= COMPUTE-SANITIZER\\n========= ERROR SUMMARY: 0 errors\\n",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\\n",
}
WRONG = {
    "memcheck": "========= COMPUTE-SANITIZER\\n========= Invalid __global__ write of size 4 bytes\\n"
    "=========     at kernel+0x1f0\\n========= ERROR SUMMARY: 2 errors\\n",
    "racecheck": "========= Error: Race reported between Write access and Read access\\n"
    "========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\\n",
}


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """tool(logs, said): an executable of that name which writes these logs; the part, run with it."""
    monkeypatch.setattr(sanitizer, "compile_kernels", lambda calls, asked: None)

    def plant(logs: dict[str, str], said: str = "108 calls", status: int = 0, sleep: float = 0.0) -> dict:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        cases = "\n".join(f'  {name}) printf "{text}" > "$log";;' for name, text in logs.items())
        script = f"""#!/bin/sh
[ "$1 $3 $4 $5" = "--tool --report-api-errors no --log-file" ] || exit 9
tool=$2 log=$6
[ "$tool" != memcheck ] || [ "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 ] || exit 8
case "$*" in *"-m benchmarks.proof.small_calls cpu cuda"*) ;; *) exit 7;; esac
sleep {sleep}
case $tool in
{cases}
esac
echo "{said}"
exit {status}
"""
        path = folder / sanitizer.TOOL
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        found: dict = {}
        seconds = 60.0 if not sleep else 6.0
        asked = Asked(torch.device("cpu"), time.monotonic() + seconds, tmp_path, {"impl": "cuda"})
        try:
            sanitizer.run(asked, found)
        except Exception as error:
            found["raised"] = error
        return found

    return plant


def test_no_error(tool):
    found = tool(CLEAN)
    assert "raised" not in found and found["tools"].keys() == {"memcheck", "racecheck"}
    for mine in found["tools"].values():
        assert (mine["errors"], mine["warnings"], mine["calls"], mine["lines"]) == (0, 0, "108 calls", [])


def test_errors_are_counted_and_shown(tool):
    found = tool(WRONG, status=1)
    memory, races = found["tools"]["memcheck"], found["tools"]["racecheck"]
    assert memory["errors"] == 2 and memory["lines"][0] == "Invalid __global__ write of size 4 bytes"
    assert (races["errors"], races["warnings"]) == (1, 2) and "Race reported" in races["lines"][0]
    assert isinstance(found["raised"], AssertionError)
    assert str(found["raised"]) == "memcheck: 2 errors, racecheck: 1 errors"


@pytest.mark.parametrize("logs, said", [({}, "108 calls"), (CLEAN, "Killed")])
def test_a_tool_that_broke_off_has_proved_nothing(tool, logs, said):
    found = tool(logs, said, status=1)
    assert isinstance(found["raised"], RuntimeError) and "memcheck ended with status 1" in str(found["raised"])


def test_out_of_time(tool):
    found = tool(CLEAN, sleep=30)
    assert isinstance(found["raised"], OutOfTime) and str(found["raised"]) == "within memcheck"


def test_where_there_is_no_sanitizer(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name, path: None)
    with pytest.raises(NotHere, match="no compute-sanitizer in PATH, CUDA_HOME/bin"):
        sanitizer.run(Asked(torch.device("cpu"), 0.0, tmp_path, {"impl": "cuda"}), {})


def test_calls_that_do_not_run_without_it_are_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer, "ROOMS", ("norm",))
    asked = Asked(torch.device("cpu"), time.monotonic() + 60, tmp_path, {})
    sanitizer.compile_kernels(["true"], asked)
    with pytest.raises(RuntimeError, match="small calls of norm ended with status 1"):
        sanitizer.compile_kernels(["false"], asked)
    with pytest.raises(OutOfTime, match="while the kernels of norm were compiled"):
        sanitizer.compile_kernels(["sh", "-c", "sleep 60"], asked._replace(until=time.monotonic()))


# ---- the calls -------------------------------------------------------------------------------------------------------


def test_small_calls_of_every_room(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["small_calls", "cpu", "cpu"])
    assert small_calls.main() == 0
    assert capsys.readouterr().out == "108 calls\n"


def test_small_calls_launch_the_native_kernels(monkeypatch, capsys):
    """In the emulation, where impl="cuda" takes CPU tensors. The smallest room; all are run by hand, see
    docs/benchmarks.md."""
    monkeypatch.setattr("sys.argv", ["small_calls", "cpu", "cuda", "patches"])
    with emulation():
        assert small_calls.main() == 0
        kernels = {function.partition("<")[0] for room, function, _ in _cuda._loaded}
    assert kernels == {"patches::gather", "patches::scatter"} and capsys.readouterr().out == "12 calls\n"
