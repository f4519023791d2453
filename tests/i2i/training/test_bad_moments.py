"""What happens to a run, and what is told, when things go wrong around it."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from support.tiny_runs import ROOT, TINY, arguments, losses, same

import kernels
from i2i import NotSaved, distributed
from i2i.__main__ import main
from i2i.cli.failures import DEFECT, explain
from i2i.devices import choose_device
from i2i.errors import UsageError
from i2i.methods.cut import CUT, CUTConfig
from i2i.training import checkpoint
from i2i.training.loop import train
from i2i.training.progress import LossLog, ProgressBar, StopRequest
from kernels import _commands

resource = pytest.importorskip("resource", reason="limits of a process stand in for a full disk")


@pytest.fixture
def limited():
    """Sets the size that no file may grow beyond: writing fails then as on a full disk (EFBIG for ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint.pt",
        "losses.csv",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("latest_net_G.pth", "pictures/step_0000003.png")),
    ],
)
def test_a_full_disk_costs_no_checkpoint(tmp_path, limited, capsys, one_thread, name):
    run = tmp_path / "run"
    config = CUTConfig(**TINY | {"steps": 2, "save_every": 1, "sample_every": 1, "ngf": 2 if "png" in name else 4})
    if "png" in name:  # of which no file but the pictures is to be the largest
        config.feature_width = 2
    train("cut", config, run)
    size = (run / name.replace("3.png", "2.png")).stat().st_size
    good = (run / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    limited(max(100, size - 100))
    code = main(["train", "--resume", str(run), "steps=4", "--device", "cpu"])
    limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(said) == 1
    assert "training stopped after step " in said[0] and "File too large" in said[0] and ".tmp" not in said[0]
    assert f"make room before going on from step 2 with --resume {run}" in said[0]
    assert (run / "checkpoint.pt").read_bytes() == good
    assert not list(run.rglob("*.tmp"))
    assert main(["train", "--resume", str(run), "steps=4", "--device", "cpu"]) == 0
    config.steps = 4
    train("cut", config, tmp_path / "whole")
    assert losses(run) == losses(tmp_path / "whole")
    assert same(checkpoint.read(run)["networks"], checkpoint.read(tmp_path / "whole")["networks"])


def test_the_library_raises_what_it_documents(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "x"))

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(NotSaved, match=r"stopped after step 4: .*x: No space left on device; make room before begin"):
        train("cut", CUTConfig(**TINY | {"steps": 4}), tmp_path / "run")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own thread
def test_a_full_disk_under_tensorboard(tmp_path, limited):
    log = LossLog(tmp_path, tensorboard=True)
    limited(2000)
    with pytest.raises(OSError, match="File too large"):
        for step in range(1, 200):
            log.add(step, {"G": torch.ones(())})
            log.flush()
            (tmp_path / "losses.csv").write_text("")  # it is the other file that shall be full
    with pytest.raises(OSError):
        log.close()
    log.close()  # once told


def test_training_from_a_thread_is_the_same_run(tmp_path, one_thread):
    """As notebooks and servers do it; there are no signals outside the main thread."""
    raised = []

    def work():
        try:
            torch.set_num_threads(1)
            train("cut", CUTConfig(**TINY | {"steps": 3}), tmp_path / "thread")
        except BaseException as error:
            raised.append(error)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not raised and signal.getsignal(signal.SIGINT) is before
    train("cut", CUTConfig(**TINY | {"steps": 3}), tmp_path / "main")
    assert losses(tmp_path / "thread") == losses(tmp_path / "main")


def test_signals_of_others_are_left_alone(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with StopRequest():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is not before[signal.SIGINT]
        monkeypatch.setattr(signal, "getsignal", lambda number: None)  # set by a program around Python
        with StopRequest() as stop:
            assert not stop._before
    finally:
        monkeypatch.undo()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert all(signal.getsignal(number) is handler for number, handler in before.items())


def test_a_second_interrupt_inside_the_writing_of_a_checkpoint(tmp_path, monkeypatch, capsys):
    run, save = tmp_path / "run", torch.save
    clock = [0.0]

    def interrupted(state, file):
        file.write(b"half")
        if file.name.endswith("checkpoint.pt.tmp") and state["step"] == 2:
            for seconds in (0.0, 2.0):
                clock[0] = seconds
                signal.raise_signal(signal.SIGINT)
        file.seek(0)
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        patch.setattr("i2i.training.progress.time.monotonic", lambda: clock[0])
        assert main(arguments(output=run, steps=4, save_every=1)) == 130
    error = capsys.readouterr().err.splitlines()
    assert error[-1] == "interrupted; nothing saved since the last checkpoint" and "Traceback" not in "".join(error)
    assert checkpoint.read(run)["step"] == 1 and not list(run.glob("*.tmp"))
    assert main(["train", "--resume", str(run), "--device", "cpu"]) == 0


SLOW_TORCH = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
COMMANDS = {
    "i2i": "from i2i.__main__ import main",
    "kernels-report": "from kernels.backends import main",
    "kernels-bench": "from kernels._bench import main",
}


@pytest.mark.parametrize("command", [*COMMANDS, *(f"-m {module}" for module in _commands.MODULES)])
def test_an_interrupt_while_torch_is_imported(tmp_path, command):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(SLOW_TORCH)
    words = command.split()
    if command in COMMANDS:  # a console script, as pip writes it
        (tmp_path / command).write_text(f"import sys\n{COMMANDS[command]}\nsys.exit(main())\n")
        words = [str(tmp_path / command)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    with subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "importing\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted\n")


def test_an_interrupt_in_a_program_of_others_is_theirs(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise KeyboardInterrupt\n")
    code = "try:\n    import i2i\nexcept KeyboardInterrupt:\n    print('theirs')"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "theirs\n"


def test_readers_who_leave_and_full_outputs(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "i2i", "list"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1 and done.stderr == "error: standard output: No space left on device\n"


def test_a_progress_line_that_nobody_can_read(monkeypatch):
    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stderr", Gone())
    bar = ProgressBar(0, 10, 1)
    bar.show(5, {"G": 1.0})
    bar.show(10, {"G": 1.0})
    bar.close()


def test_a_defect_of_ours_says_where_to_report_it(tmp_path, monkeypatch, capsys):
    def broken(self, *images):
        return self.no_such_thing

    monkeypatch.setattr(CUT, "step", broken)
    assert main(arguments(output=tmp_path / "run", steps=2)) == DEFECT
    error = capsys.readouterr().err
    assert "Traceback" in error and "no_such_thing" in error
    last = error.splitlines()[-1]
    assert last.startswith("error: AttributeError: this is a defect of i2i") and "the project's issue tracker" in last
    assert torch.__version__ in last and "kernels-report" in last


def test_what_is_no_defect_gets_one_sentence(tmp_path, monkeypatch):
    def told(error):
        code, sentence = explain(error)
        assert "\n" not in sentence and "defect" not in sentence
        return code, sentence

    with pytest.raises(RuntimeError) as memory:
        torch.empty(1 << 60)
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to"), memory.value):
        assert told(error) == (1, "the device ran out of memory; try a smaller crop_size, batch_size or width")
    assert told(PermissionError(errno.EACCES, "Permission denied", "/a/b")) == (2, "/a/b: Permission denied")
    assert told(OSError(errno.ENOSPC, "No space left on device", "/a/b")) == (1, "/a/b: No space left on device")
    assert told(OSError("a sentence")) == (2, "a sentence")
    assert told(UsageError("lr must be above 0")) == (2, "lr must be above 0")
    assert told(kernels.BackendUnavailable("no compiler")) == (2, "no compiler")
    with pytest.raises(ModuleNotFoundError) as missing:
        import no_such_package_anywhere  # noqa: F401
    assert told(missing.value)[1].endswith("pip install no_such_package_anywhere")
    assert explain(ModuleNotFoundError("No module named 'i2i.gone'", name="i2i.gone"))[0] == DEFECT
    monkeypatch.setenv("WORLD_SIZE", "2")
    gone = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert told(gone)[1].startswith("another process of this run has ended")


def test_environments_of_clusters_and_devices(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(UsageError, match="WORLD_SIZE is set in the environment but RANK, LOCAL_RANK, MASTER_ADDR"),
        distributed.processes(torch.device("cpu")),
    ):
        pass
    with pytest.raises(UsageError, match="device meta holds no values"):
        choose_device("meta")
