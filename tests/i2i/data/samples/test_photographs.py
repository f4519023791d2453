"""The sample photographs: what is shown, what is held out, and the answer that is known."""

import socket

import pytest
import torch

from i2i.data.samples import photographs as samples
from i2i.errors import UsageError

MODES = ("unaligned", "aligned", "singleimage")


@pytest.fixture(scope="module")
def data():
    return {mode: samples.SamplePhotographs(64, True, 0, mode) for mode in MODES}


def test_they_load_without_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert samples.photograph("chelsea").shape == (3, 192, 288)


@pytest.mark.parametrize("mode", MODES)
def test_items_and_preview(data, mode):
    data = data[mode]
    assert len(data) == 50
    for number in range(4):
        a, b = data.item(number)
        assert a.shape == b.shape == (3, 64, 64)
        assert all(torch.equal(x, y) for x, y in zip(data.item(number), (a, b), strict=True))
    assert len({data.item(number)[0].sum().item() for number in range(20)}) == 20
    a, b = data.preview(4)
    assert a.shape == b.shape and len(a) == len(data.preview(1)[0]) * (1 if mode == "singleimage" else 2)
    assert torch.equal(b, samples.stylise(a))


def test_paired_crops_are_of_one_place(data):
    for number in range(8):
        a, b = data["aligned"].item(number)
        torch.testing.assert_close(samples.stylise(a), b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_held_out_parts_are_never_shown(data, mode):
    """The held-out columns start where the training part ends."""
    for name, train, test in zip(samples.A, data[mode].train_a, data[mode].test_a):
        whole = samples.photograph(name)
        assert torch.equal(whole[..., : train.shape[-1]], train)
        height, width = test.shape[1:]
        assert torch.equal(whole[:, :height, train.shape[-1] :][..., :width], test)
        assert height % 4 == width % 4 == 0
    if mode != "aligned":
        assert not set(data[mode].names[0]) & set(data[mode].names[1])


def test_held_out_parts_of_pairs_are_whole_crops():
    """128 x 128 is what the smaller published U-Net takes."""
    a, _ = samples.SamplePhotographs(128, True, 0, "aligned").preview(4)
    assert a.shape == (2, 3, 128, 128)


def test_score(data):
    data = data["unaligned"]
    assert data.held_out(lambda images: samples.stylise(images) + 0.02) == pytest.approx(
        40, abs=0.3
    )  # 20 log10(2 / .02)
    assert 8 < data.held_out(lambda images: images) < 11  # doing nothing


def test_refused():
    for mode, largest in {"unaligned": 96, "aligned": 128}.items():
        with pytest.raises(UsageError, match=f"crop_size must be at most {largest} .*got 132"):
            samples.SamplePhotographs(132, True, 0, mode)
    with pytest.raises(UsageError, match="dataset_mode single is not for the sample photographs"):
        samples.SamplePhotographs(64, True, 0, "single")


def test_stylise_is_monotone_in_luminance_and_ends_on_its_stops():
    ramp = torch.linspace(-1, 1, 65).expand(3, 1, 65)
    styled = samples.stylise(ramp)
    assert (styled.diff(dim=2) >= 0).all()
    for place, stop in zip((0, 32, 64), samples.STOPS, strict=True):
        torch.testing.assert_close((styled[:, 0, place] + 1) * 127.5, torch.tensor(stop).float(), atol=1e-3, rtol=0)


def test_a_perfect_picture_does_not_make_the_score_infinite():
    truth = torch.zeros(3, 8, 8)
    assert samples.mean_psnr([truth, truth + 0.02], [truth, truth]) == pytest.approx(40, abs=0.01)  # 20 log10(2 / 0.02)
    assert samples.mean_psnr([truth], [truth]) == float("inf")
