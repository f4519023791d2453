"""VGG-16's features and MUNIT's distance between them."""

import pytest
import torch
import torch.nn.functional as F

from i2i.errors import UsageError
from i2i.networks import vgg
from i2i.networks.vgg import Vgg16, load_vgg16, normalised_distance

NARROW = ((2, 3), (4, 5), (6, 7, 8), (9, 10, 11), (12, 13, 14))


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(vgg, "WIDTHS", NARROW)


def in_torchs_words(x, y):
    return F.mse_loss(F.instance_norm(x), F.instance_norm(y))


@pytest.mark.parametrize("shape", [(1, 5, 6, 7), (3, 2, 4, 4)])
def test_distance_and_gradient_in_float64(shape):
    x, y = (torch.randn(shape, dtype=torch.float64) * 3 + 5 for _ in range(2))
    x.requires_grad_()
    ours, theirs = normalised_distance(x, y), in_torchs_words(x, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(3 * loss, x)[0] for loss in (ours, theirs)), rtol=1e-9, atol=1e-12)


def test_distance_keeps_no_normalised_map():
    kept = []
    x, y = torch.randn(1, 8, 16, 16, requires_grad=True), torch.randn(1, 8, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        normalised_distance(x, y)
    assert {t.data_ptr() for t in kept if t.shape == x.shape} == {x.data_ptr(), y.data_ptr()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distance_of_planes_that_are_constant_or_far_from_zero(dtype):
    x = torch.zeros(1, 3, 8, 8)
    x[:, 1] = 200.0
    x[:, 2] = torch.randn(8, 8) + 200
    y = torch.randn(1, 3, 8, 8)
    x, y = x.to(dtype).requires_grad_(), y.to(dtype)
    loss = normalised_distance(x, y)
    loss.backward()
    exact = x.detach().double().requires_grad_()
    wanted = in_torchs_words(exact, y.double())
    wanted.backward()
    # float32: the mean of 200 is known to 1e-5 of a deviation
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-4, atol=0)
    assert x.grad.isfinite().all()
    # the planes without spread have the largest, some 1e5 times that of the third
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)


def test_features_are_blue_first_centred_and_pooled_three_times(narrow):
    net, x = Vgg16().double(), torch.rand(2, 3, 40, 48, dtype=torch.float64) * 2 - 1
    weights = iter(net.state_dict().values())
    y = torch.stack([(x[:, 2 - i] + 1) * 127.5 - mean for i, mean in enumerate((103.939, 116.779, 123.680))], dim=1)
    for stage, widths in enumerate(NARROW):
        for _ in widths:
            y = F.conv2d(y, next(weights), next(weights), padding=1).relu()
        if stage in (0, 1, 2):
            y = F.max_pool2d(y, 2)
    # the three means are held in float32
    torch.testing.assert_close(net(x), y, rtol=1e-6, atol=1e-6)
    assert net(x).shape == (2, 14, 5, 6)


def test_weights_by_either_name(narrow, tmp_path):
    state = Vgg16().state_dict()
    torch.save(state, tmp_path / "munit.pt")
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    names = [f"features.{place}.{kind}" for place in places for kind in ("weight", "bias")]
    other = dict(zip(names, state.values(), strict=True)) | {"classifier.0.weight": torch.zeros(3)}
    torch.save(dict(reversed(other.items())), tmp_path / "features.pt")
    for file in ("munit.pt", "features.pt"):
        net = load_vgg16(str(tmp_path / file))
        assert all(map(torch.equal, net.state_dict().values(), state.values()))
        assert not any(parameter.requires_grad for parameter in net.parameters())


def test_what_are_no_weights_is_said(narrow, tmp_path):
    with pytest.raises(UsageError, match="vgg_weights: nowhere.pt is not a file"):
        load_vgg16("nowhere.pt")
    for damaged in (b"no weights", b"hello world", b"\x80\x02."):  # an unknown opcode, an unknown key, an empty stack
        (tmp_path / "text").write_bytes(damaged)
        with pytest.raises(UsageError, match="vgg_weights: .*text: damaged, or no file of weights"):
            load_vgg16(str(tmp_path / "text"))
    for state in (torch.zeros(3), {"features.0.weight": torch.zeros(2, 3, 3, 3)}, {"conv1_1.weight": torch.zeros(5)}):
        torch.save(state, tmp_path / "other")
        with pytest.raises(UsageError, match="does not hold the 13 convolutions of VGG-16"):
            load_vgg16(str(tmp_path / "other"))


def test_weights_that_are_not_finite_are_refused(narrow, tmp_path):
    state = Vgg16().state_dict()
    state["conv3_2.bias"][1] = torch.nan
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UsageError, match="vgg_weights: .*x.pt holds weights that are not finite"):
        load_vgg16(str(tmp_path / "x.pt"))
