"""Whole runs: what they write, that they learn, resume exactly, stop cleanly, and say what is wrong."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from support.tiny_runs import ROOT, TINY, arguments, fails, losses, same

from i2i.__main__ import main
from i2i.data.samples.photographs import SamplePhotographs
from i2i.errors import TrainingDiverged
from i2i.methods.cut import CUT, CUTConfig
from i2i.training import checkpoint
from i2i.training.loop import train
from i2i.training.schedule import Schedule


def test_what_a_run_on_folders_writes(folders, tmp_path, capsys, plots):
    output = tmp_path / "run"
    assert main([*arguments(output=output, steps=6, load_size=36), "--data", str(folders)]) == 0
    table = losses(output)
    assert table[0] == ["step", "D_real", "D_fake", "G_GAN", "NCE", "NCE_Y", "G"]
    assert [row[0] for row in table[1:]] == ["1", "2", "3", "4", "5", "6"]
    files = {"checkpoint.pt", "losses.csv", "losses.png", "pictures"}
    weights = {f"latest_net_{name}.pth" for name in "GDF"} | {"latest_ema_net_G.pth"}
    assert {p.name for p in output.iterdir()} == files | weights
    assert [p.name for p in sorted((output / "pictures").iterdir())] == ["step_0000004.png", "step_0000006.png"]
    assert Image.open(output / "pictures" / "step_0000006.png").width > 2 * 32
    assert Image.open(output / "losses.png").width > 500
    state = checkpoint.read(output)
    assert state["step"] == 6 and checkpoint.config(state).data == (str(folders),)
    networks = state["networks"]
    assert "model.12.conv_block.5.weight" in networks["G"] and "model.7.filt" in networks["G"]
    assert "mlp_4.2.bias" in networks["F"]
    printed = capsys.readouterr()
    assert str(output / "checkpoint.pt") in printed.out and "images/s" in printed.err and "G_GAN" in printed.err


def test_two_folders_and_published_names(folders, tmp_path):
    options = arguments(output=tmp_path / "run", steps=2, load_size=32, gan_mode="nonsaturating", batch_size=2)
    words = ["--nce_idt", "False", "--no_flip", "--dataroot", str(folders / "trainA"), str(folders / "trainB")]
    assert main([*options, *words]) == 0
    assert losses(tmp_path / "run")[0] == ["step", "D_real", "D_fake", "G_GAN", "NCE", "G"]


def test_resumed_run_equals_uninterrupted_run(tmp_path, one_thread, monkeypatch):
    config = CUTConfig(**TINY | {"steps": 9, "n_epochs": 0, "ema": 0.9})
    monkeypatch.setattr(SamplePhotographs, "__len__", lambda self: 2)  # epochs end within the run, and rates fall
    train("cut", config, tmp_path / "whole")

    class Killed(Exception):
        pass

    step = CUT.step

    def killed_after_six(self, *images):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 6:  # two steps past the checkpoint of step 4
            raise Killed
        return step(self, *images)

    with monkeypatch.context() as patch:
        patch.setattr(CUT, "step", killed_after_six)
        with pytest.raises(Killed):
            train("cut", config, tmp_path / "parts")
    torch.manual_seed(999)  # whatever happened in between must not matter
    with open(tmp_path / "parts" / "losses.csv", "a") as file:
        file.write("1")  # broken off by the kill
    assert main(["train", "--resume", str(tmp_path / "parts"), "--device", "cpu"]) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same(checkpoint.read(tmp_path / "parts"), checkpoint.read(tmp_path / "whole"))


def test_same_seed_same_losses_other_seed_others(tmp_path, one_thread):
    for name, seed in {"a": 3, "b": 3, "c": 4}.items():
        train("cut", CUTConfig(**TINY | {"steps": 2, "seed": seed}), tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def check_stopped(run, out):
    """What a run has left and said that a signal ended."""
    state = checkpoint.read(run)
    assert f"stopped after step {state['step']}; go on with: i2i train --resume {run}" in out
    assert losses(run)[-1][0] == str(state["step"])
    model = CUT(checkpoint.config(state))
    assert checkpoint.restore(state, model, Schedule(model.optimizers, model.config)) == state["step"] >= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends(tmp_path, number, monkeypatch, capsys):
    run, step = tmp_path / "run", CUT.step

    def interrupted(self, *images):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 5:
            signal.raise_signal(number)
        return step(self, *images)

    monkeypatch.setattr(CUT, "step", interrupted)
    assert main(arguments(output=run, steps=100_000)) == 128 + number
    assert checkpoint.read(run)["step"] == 5
    check_stopped(run, capsys.readouterr().out)


@pytest.mark.slow  # a process of its own; what the handler does is tested above
def test_a_signal_from_outside_saves_and_ends(tmp_path):
    run, number = tmp_path / "run", signal.SIGTERM
    command = [sys.executable, "-m", "i2i", *arguments(output=run, steps=100_000)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (run / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    check_stopped(run, out)


def test_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model = CUT(CUTConfig(**TINY))
    rates = Schedule(model.optimizers, model.config)
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, model, rates, 1)

    def half(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, model, rates, 2)
    assert checkpoint.read(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_nan_stops_with_step_and_term_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    nce = CUT.nce_loss
    calls = iter(range(100))

    def poisoned(self, *given):
        return nce(self, *given) * (float("nan") if next(calls) >= 2 * 5 else 1.0)  # two calls a step: from step 6 on

    monkeypatch.setattr(CUT, "nce_loss", poisoned)
    assert main(arguments(output=tmp_path / "run", steps=20)) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "NCE is nan at step 6" in message and str(tmp_path / "run" / "checkpoint.pt") in message
    state = checkpoint.read(tmp_path / "run")
    assert state["step"] == 4 and all(t.isfinite().all() for t in state["networks"]["G"].values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = CUT(CUTConfig(**TINY))
    with torch.no_grad():
        model.D.model[0].bias[0] = float("inf")
    with pytest.raises(TrainingDiverged, match=r"model\.0\.bias of D is not finite after step 7"):
        checkpoint.save(tmp_path / "checkpoint.pt", model, Schedule(model.optimizers, model.config), 7)
    assert not list(tmp_path.iterdir())


def test_mistakes_get_one_line(folders, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    a = folders / "trainA"
    run = ["--output", tmp_path / "run"]
    assert "no such folder" in fails(capsys, "train", "--data", tmp_path / "nowhere", *run)
    assert "trainA" in fails(capsys, "train", "--data", empty, *run)
    assert f"{empty}: no images in it" in fails(capsys, "train", "--data", a, empty, *run)
    assert "did you mean num_patches?" in fails(capsys, "train", "--num-patch", 3)
    assert "did you mean cyclegan?" in fails(capsys, "train", "--method", "cyclgan")
    assert "multiple of 4" in fails(capsys, "train", "--crop-size", 50, *run)
    assert "load_size must be at least crop_size" in fails(capsys, "train", "--data", a, a, "--load-size", 100, *run)
    assert "at most" in fails(capsys, "train", "--crop-size", 128, *run)
    assert "load_size has no meaning" in fails(capsys, "train", "--load-size", 64, *run)
    assert "one folder with trainA and trainB, or two" in fails(capsys, "train", "--data", a, a, a, *run)
    assert "steps must be a whole number, got 'many'" in fails(capsys, "train", "--steps", "many")
    assert "device nonsense" in fails(capsys, "train", "--device", "nonsense", *run)
    assert "impl" in fails(capsys, *arguments(output=tmp_path / "x", impl="fastest"))
    assert "triton" in fails(capsys, *arguments(output=tmp_path / "x", impl="triton"))
    in_a_file = {"device: nonsense": "device nonsense", "impl: fastest": "impl", "method:": "method needs a value"}
    for line, message in in_a_file.items():
        (tmp_path / "options.yaml").write_text(line)
        assert message in fails(capsys, "train", "--config", tmp_path / "options.yaml", *run)
    for mode in ("single", "attributes"):
        message = fails(capsys, *arguments(output=tmp_path / "run", dataset_mode=mode))
        assert f"dataset_mode must be one of unaligned, aligned, singleimage, got {mode}" in message
    assert "required: command" in fails(capsys)
    words = ("--weights", "w", "--input", "i", "--output", "o", "--tiles", 9)
    assert "did you mean --tile?" in fails(capsys, "translate", *words)
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_mistakes_about_checkpoints(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(arguments(output=run, steps=1)) == 0
    assert f"--resume {run}" in fails(capsys, *arguments(output=run, steps=1))
    assert "already trained 1 of 1 steps" in fails(capsys, "train", "--resume", run)
    assert "method was cut in this run" in fails(capsys, "train", "--resume", run, "--method", "cyclegan")
    assert "ngf was 4 in this run and cannot become 8" in fails(capsys, "train", "--resume", run, "--ngf", 8)
    assert "leave --output out" in fails(capsys, "train", "--resume", run, "--output", tmp_path / "other")
    assert "no such checkpoint" in fails(capsys, "train", "--resume", tmp_path / "nowhere")
    for damaged in (b"damaged", b"hello world", b"\x80\x02."):  # an unknown opcode, an unknown key, an empty stack
        (run / "checkpoint.pt").write_bytes(damaged)
        assert "checkpoint.pt: damaged, or no file of weights" in fails(capsys, "train", "--resume", run)
    torch.save({"weights": torch.zeros(1)}, run / "checkpoint.pt")
    assert "not a training checkpoint" in fails(capsys, "train", "--resume", run)


def test_default_output_is_a_new_folder_each_time(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(arguments(steps=1)) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["cut-1", "cut-2"]


def test_another_package_named_kernels_is_called_by_its_name(tmp_path, forked):
    (tmp_path / "kernels.py").write_text("")
    done = forked("import i2i", tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert f"ImportError: {tmp_path / 'kernels.py'} is another package named `kernels`" in done.stderr


@pytest.mark.parametrize(("preprocess", "tried"), [("resize_and_crop", True), ("none", False)])
def test_convolutions_are_tried_where_images_have_one_size(preprocess, tried, tmp_path, monkeypatch):
    seen, step = [], CUT.step
    monkeypatch.setattr(CUT, "step", lambda *given: seen.append(torch.backends.cudnn.benchmark) or step(*given))
    before = torch.backends.cudnn.benchmark
    train("cut", CUTConfig(**TINY | {"steps": 1, "preprocess": preprocess}), tmp_path / "run")
    assert seen == [tried] and torch.backends.cudnn.benchmark == before
