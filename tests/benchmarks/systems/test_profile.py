"""Profiles of a step: which kind of work an operator counts as, and the command."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernels
from benchmarks import profile, zoo
from benchmarks.systems.step_profile import (
    ACTIVATIONS,
    ADDITIONS,
    ARITHMETIC,
    CONVOLUTIONS,
    COPIES,
    FILLS,
    NCE,
    NORMS,
    OPTIMISER,
    OVERHEAD,
    PADDING,
    PATCHES,
    PRODUCTS,
    RESAMPLE,
    marked,
    profiled,
    quickest,
)
from kernels import backends
from kernels._build import ROOMS

TINY = {"generator": "resnet_6blocks", "ngf": 4, "ndf": 4, "num_patches": 16, "feature_width": 16, "crop_size": 32}
X = torch.randn(2, 4, 8, 8)
LEAF = torch.randn(2, 4, 8, 8, requires_grad=True)
ROWS = torch.randn(6, 8)
WEIGHT = torch.randn(4, 4, 3, 3)
PLACES = torch.tensor([3, 1])


def gradients_meet() -> None:
    y = LEAF.sin()
    torch.autograd.grad([y.cos().sum(), y.exp().sum()], LEAF)


def of_a_weight(times: int) -> None:
    weight = nn.Parameter(torch.ones(3))
    for _ in range(times):
        weight.exp().backward(torch.ones(3))


def updated() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    torch.optim.Adam([weight], fused=True).step()


CALLS = {
    "views": (lambda: X.view(2, -1)[:, 1:].t().detach().expand(3, -1, 2), set()),
    "memory": (lambda: (torch.empty(3), torch.empty_like(X)), set()),
    "convolution": (lambda: F.conv2d(X, WEIGHT, padding=1), {CONVOLUTIONS}),
    "one that torch copies for": (lambda: F.conv2d(X[:, :, ::2], WEIGHT), {CONVOLUTIONS, COPIES}),
    "transposed convolution": (lambda: F.conv_transpose2d(X, WEIGHT), {CONVOLUTIONS}),
    "products": (lambda: (X @ X, F.linear(ROWS, ROWS)), {PRODUCTS}),
    "norms": (lambda: (F.instance_norm(X), F.batch_norm(X, None, None, training=True)), {NORMS}),
    "our norm": (lambda: kernels.instance_norm(X, activation="relu"), {NORMS}),
    "our norm, recorded": (lambda: torch.autograd.grad(kernels.instance_norm(LEAF), LEAF, X), {NORMS}),
    "paddings": (lambda: (F.pad(X, (1, 1, 1, 1), mode="reflect"), kernels.reflection_pad2d(X, 1)), {PADDING}),
    "resampling": (lambda: (kernels.blur_upsample(X), kernels.blur_downsample(X)), {RESAMPLE}),
    "sampling": (lambda: kernels.sample_patches([X], ids=[PLACES]), {PATCHES}),
    "a loss": (lambda: kernels.patch_nce_loss(ROWS, ROWS), {NCE, ARITHMETIC, COPIES, FILLS}),
    "activations": (lambda: F.leaky_relu(X).relu().tanh(), {ACTIVATIONS}),
    "copies": (
        lambda: (X.clone(), X.bfloat16(), torch.cat([X, X]), X.contiguous(memory_format=torch.channels_last)),
        {COPIES},
    ),
    "fills": (lambda: (torch.zeros(3), torch.ones_like(X)), {FILLS}),
    "arithmetic": (lambda: X.sin() + X, {ARITHMETIC}),
    "gradients that meet": (gradients_meet, {ADDITIONS, ARITHMETIC, FILLS}),
    "of a weight, the first": (lambda: of_a_weight(1), {ARITHMETIC, FILLS}),
    "of a weight": (lambda: of_a_weight(2), {ADDITIONS, ARITHMETIC, FILLS}),
    "update": (updated, {OPTIMISER, COPIES, FILLS}),
}


@pytest.mark.parametrize("name", CALLS)
def test_kinds(name):
    call, wanted = CALLS[name]
    found = profiled(call)
    assert found["kinds"].keys() - {OVERHEAD} == wanted
    assert found["seconds"] == pytest.approx(sum(found["kinds"].values())) and found["page_faults"] >= 0


def test_nothing_stays_behind():
    before = {room: vars(backends.launcher(room, "cpu")).copy() for room in ROOMS}
    with marked():
        assert backends.launcher("norm", "cpu").forward is not before["norm"]["forward"]
    assert all(vars(backends.launcher(room, "cpu")) == of for room, of in before.items())


def test_the_quickest_is_taken():
    assert quickest([{"seconds": 2.0}, {"seconds": 1.0}, {"seconds": 3.0}]) == {"seconds": 1.0}


def test_command_line(tmp_path, monkeypatch, capsys):
    """With a contestant that fails, which costs its own row."""
    monkeypatch.setattr(zoo, "names", lambda method: ["fused", "gone"])
    assert profile.main(["--size", "32", "--rounds", "1", "--output", str(tmp_path)], TINY) == 1
    result = json.loads((tmp_path / "profile_cut_float32.json").read_text())
    ours, gone = result["rows"]
    assert gone["status"] == "error" and "gone" in gone["reason"] and ours["status"] == "ok"
    assert ours["kinds"].keys() > {CONVOLUTIONS, NORMS, RESAMPLE, PADDING, PATCHES, NCE, ADDITIONS, OPTIMISER}
    text = (tmp_path / "profile_cut_float32.md").read_text()
    assert f"| **{1e3 * ours['seconds']:.4g}** |" in text and "**error** gone" in text and "crop_size=32" in text
    assert "| convolutions |" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["contiguous", "channels_last"])
def test_the_memory_format_can_be_chosen(form, tmp_path, monkeypatch):
    seen = []

    def built(*given):
        model, images, steps = contestant(*given)
        seen.append(model.form)
        return model, images, steps

    contestant = zoo.contestant
    monkeypatch.setattr(zoo, "names", lambda method: ["fused"])
    monkeypatch.setattr(zoo, "contestant", built)
    preferred = kernels.preferred_memory_format
    words = ["--size", "32", "--rounds", "1", "--output", str(tmp_path), "--memory-format", form]
    assert profile.main(words, TINY) == 0
    assert seen == [profile.FORMATS[form]] and kernels.preferred_memory_format is preferred
    assert f"Maps are {form.replace('_', ' ')}," in (tmp_path / "profile_cut_float32.md").read_text()


def test_on_a_gpu_it_says_where_to_look(capsys):
    assert profile.main(["--device", "cuda"]) == 2
    assert "--device: got cuda, want cpu" in capsys.readouterr().err
