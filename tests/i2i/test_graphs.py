"""i2i.graphs by itself: what is recorded, what is not, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.graph_stand_ins import TapeRecorder
from torch import Tensor

from i2i import graphs
from i2i.graphs import Draws, Graphs, Losses

CPU = torch.device("cpu")


def made() -> Graphs:
    return Graphs(CPU, recorder=TapeRecorder())


def scaled(images: tuple[Tensor, ...], draws: Draws) -> Losses:
    """A loss that hangs on everything."""
    loss = images[0].sum() * (2 if draws.variant else 1)
    for number in draws.tensors:
        loss = loss + (0 if number is None else number.sum())
    return {"loss": loss}


def run(through: Graphs, value: float, size: int = 2, variant: tuple = (), compute: Callable = scaled) -> float:
    drawn = [torch.full((3,), value), None, torch.tensor([int(value)]), torch.tensor(0.5)]
    return float(compute_loss(through, compute, torch.full((size,), value), Draws(variant, drawn)))


def compute_loss(through: Graphs, compute: Callable, images: Tensor, draws: Draws) -> Tensor:
    before = images.clone()
    loss = through.run(compute, (images,), draws)["loss"]
    assert torch.equal(images, before)  # a recording has tensors of its own
    return loss


def wanted(value: float, size: int = 2, variant: tuple = ()) -> float:
    return size * value * (2 if variant else 1) + 3 * value + int(value) + 0.5


def test_each_variant_and_shape_is_recorded_after_some_calls():
    through = made()
    for value in range(graphs.EAGER_CALLS + 3):
        assert not through.recordings or value > graphs.EAGER_CALLS
        for variant in ((), (True,)):
            for size in (2, 5):
                assert run(through, value, size, variant) == wanted(value, size, variant)
    assert len(through.recordings) == 4
    assert "batch 2: recorded, 1 graph" in through.report() and "batch 5, True: recorded, 1 graph" in through.report()


def test_losses_stay_what_they_were():
    through, kept = made(), []
    for value in range(8):
        images = torch.full((2,), float(value))
        kept.append(through.run(scaled, (images,), Draws((), [torch.zeros(1)]))["loss"])
    assert list(map(float, kept)) == [2.0 * value for value in range(8)]


def test_images_of_ever_new_sizes_are_not_recorded_without_end(monkeypatch, capsys):
    monkeypatch.setattr(graphs, "EAGER_CALLS", 0)
    through = made()
    for size in range(1, 2 * graphs.MOST_RECORDINGS):
        for value in (1.0, 2.0):
            assert run(through, value, size) == wanted(value, size)
    assert len(through.recordings) == graphs.MOST_RECORDINGS
    assert capsys.readouterr().err == (  # once
        "CUDA graphs: there are 8 recordings, and steps of other sizes are launched one by one\n"
    )


def test_what_cannot_be_recorded_runs_with_a_reason(monkeypatch, capsys):
    monkeypatch.setattr(graphs, "EAGER_CALLS", 1)
    through = made()

    def fails(images: tuple[Tensor, ...], draws: Draws) -> Losses:
        if through.recording:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return scaled(images, draws)

    for value in (1.0, 2.0, 3.0):
        assert run(through, value, compute=fails) == wanted(value)
    reason = "recording failed, RuntimeError: operation not permitted when stream is capturing and more"
    assert through.reason == reason and not through.recordings
    assert capsys.readouterr().err == f"CUDA graphs: steps are launched one by one: {reason}\n"
    assert through.report() == [f"steps are launched one by one: {reason}"]


def test_a_failure_forgets_what_was_recorded_before(monkeypatch):
    """torch leaves other graphs unusable."""
    monkeypatch.setattr(graphs, "EAGER_CALLS", 0)
    through = made()
    assert run(through, 1.0) == run(through, 1.0) == wanted(1.0) and through.recordings

    def fails(images: tuple[Tensor, ...], draws: Draws) -> Losses:
        if through.recording:
            raise ValueError("no")
        return scaled(images, draws)

    assert run(through, 2.0, size=3, compute=fails) == wanted(2.0, size=3)
    assert not through.recordings and run(through, 1.0) == wanted(1.0)


def test_a_step_that_fails_without_a_graph_too_names_the_way_out(monkeypatch):
    monkeypatch.setattr(graphs, "EAGER_CALLS", 0)

    def fails(images: tuple[Tensor, ...], draws: Draws) -> Losses:
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="failed after recording failed, ValueError: no; cuda_graphs=false does"):
        run(made(), 1.0, compute=fails)


def test_ctrl_c_in_a_recording_leaves_none(monkeypatch):
    monkeypatch.setattr(graphs, "EAGER_CALLS", 0)
    through = made()

    def interrupted(images: tuple[Tensor, ...], draws: Draws) -> Losses:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(through, 1.0, compute=interrupted)
    assert through.recording is None and not through.reason
    assert run(through, 1.0) == run(through, 1.0) == wanted(1.0) and through.recordings


def test_a_step_of_which_a_part_was_done_is_not_begun_again(monkeypatch):
    monkeypatch.setattr(graphs, "EAGER_CALLS", 0)
    through = made()

    def fails(images: tuple[Tensor, ...], draws: Draws) -> Losses:
        through.outside(lambda: None)
        raise ValueError("no")

    with pytest.raises(RuntimeError, match="cuda_graphs=false does without"):
        run(through, 1.0, compute=fails)


def test_calls_outside_come_in_their_place_with_what_is_there_then(monkeypatch):
    monkeypatch.setattr(graphs, "EAGER_CALLS", 1)
    through, seen, held = made(), [], torch.zeros(())

    def host(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((float(x), float(y)))
        return x + len(seen), y

    def compute(images: tuple[Tensor, ...], draws: Draws) -> Losses:
        held.add_(1)
        x, y = through.outside(host, images[0].sum(), held * 10)
        z = through.outside(lambda x: x * 2, x)
        through.outside(lambda: None)
        return {"loss": x + y + z}

    losses = [float(compute_loss(through, compute, torch.full((2,), float(i)), Draws())) for i in range(5)]
    assert seen == [(2.0 * i, 10.0 * (i + 1)) for i in range(5)]
    assert losses == [3 * (2.0 * i + i + 1) + 10 * (i + 1) for i in range(5)]
    (recording,) = through.recordings.values()
    assert recording.graphs() == 4


def test_reasons():
    assert Graphs(CPU).report() == ["steps are launched one by one: the device is cpu"]
    assert graphs.why_not(torch.device("cuda"), False) == "cuda_graphs is false"
    assert graphs.why_not(torch.device("cuda", 1), True) == ""
    assert made().report() == ["nothing is recorded yet: each kind of step is launched 3 times first"]


def test_packed_numbers_are_those_that_were_drawn():
    tensors: list[Any] = [torch.rand(2, 3), torch.arange(5), torch.rand(()), torch.arange(0), torch.tensor([[7]])]
    flats = graphs.pack(tensors)
    assert [flat.dtype for flat in flats] == [torch.float32, torch.int64]
    for found, want in zip(graphs.unpack(flats, tensors), tensors, strict=True):
        assert found.shape == want.shape and torch.equal(found, want)
    assert graphs.pack([]) == [] == graphs.unpack([], [])
