"""The comparison that comes before the timing: it passes what is the same, and fails what is not."""

import pytest
import torch
from torch import nn

import kernels
from benchmarks.outside import compare, lines
from benchmarks.outside.compare import Comparison, different, judge, loss_distance, why
from benchmarks.outside.driven import Driven, float64_by_default, forward_under_autocast, seed


def make() -> Driven:
    """Two convolutions with a norm between them, and a loss that draws."""
    seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(True), nn.Conv2d(4, 2, 1, bias=False)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def take(images):
        optimizer.zero_grad()
        loss = (net(images) * torch.randn(images.shape[0], 2, 1, 1)).square().mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return Driven(torch.device("cpu"), {"net": net}, take, [torch.randn(2, 3, 12, 12)])


def scaled(module, given, result):
    return result * (1 + 1e-8)


def gradient_scaled(module, given, result):
    return result + 1e-6 * (result - result.detach())


LINES = {
    lines.FUSE: lambda driven: kernels.fuse(driven.networks["net"]),
    "forward": lambda driven: driven.networks["net"][1].register_forward_hook(scaled),
    "gradient": lambda driven: driven.networks["net"][1].register_forward_hook(gradient_scaled),
    "update": lambda driven: driven.networks["net"][0].weight.register_hook(lambda grad: grad),
    "keys": lambda driven: driven.networks["net"].register_buffer("more", torch.zeros(1)),
}


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    for name, apply in LINES.items():
        monkeypatch.setitem(lines.LINES, name, lines.Line("", apply))
    found = Comparison(make, tmp_path / "initial.pt")
    assert list(found.stock(str(tmp_path / "oracle.pt"))["losses"]) == ["loss"]
    return found


def test_fuse_is_the_same_step(comparison, tmp_path):
    found = comparison.line(lines.FUSE)
    assert found["reason"] == "" and found["checkpoints"] == ""
    assert 0 < found["gradients"]["net"] < compare.EXACT  # not the same arithmetic, or nothing was fused
    assert "InstanceNorm2d" in found["report"]["net"] and "ReLU merged" in found["report"]["net"]
    assert torch.load(tmp_path / "oracle.pt")["net"].dtype == torch.float64


@pytest.mark.parametrize(
    "fault, told",
    [("forward", "losses: "), ("gradient", "gradients of net: "), ("keys", "checkpoints: stock's into ours: ")],
)
def test_a_planted_fault_is_found(comparison, fault, told):
    assert comparison.line(fault)["reason"].startswith(told)


def test_a_fault_of_updates_alone_is_found(comparison, monkeypatch):
    """The first step is right: only what an optimiser makes of it is not."""
    monkeypatch.setattr(torch.optim.Adam, "__init__", lambda self, p, lr: adam(self, p, lr=lr * (1 + 1e-4)))
    found = comparison.line("update")
    assert found["gradients"]["net"] == found["losses"] == 0
    assert "losses after 3 steps" in found["reason"] and "weights of net" in found["reason"]


adam = torch.optim.Adam.__init__


def test_own_error_is_that_of_the_precision(comparison):
    exact, coarse = comparison.own(lines.FLOAT32), comparison.own(lines.BFLOAT16)
    assert 1e-9 < exact["gradients"]["net"] < 1e-5
    assert 1e-3 < coarse["gradients"]["net"] < 0.2


def test_torchs_wrong_gradient_is_kept_from_the_measure(tmp_path):
    """Of an instance norm on a CPU at batch 1 with a channels-last gradient (docs/numerics.md)."""

    def one() -> Driven:
        seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4))

        def take(images):
            loss = net(images).permute(0, 2, 3, 1).flatten(1, 2)[:, :40].exp().mean()
            loss.backward()
            return {"loss": loss}

        return Driven(torch.device("cpu"), {"net": net}, take, [torch.randn(1, 3, 12, 12)])

    found = Comparison(one, tmp_path / "initial.pt")
    found.stock(str(tmp_path / "oracle.pt"))
    driven = one()
    driven.double()
    kernels.fuse(driven.networks["net"])
    driven.step(*driven.batch)
    exact = driven.gradients()["net"]
    assert compare.distance(exact, torch.load(tmp_path / "oracle.pt")["net"]) < 1e-12


def test_why():
    good = {"losses": 1e-11, "later_losses": 1e-9, "gradients": {"G": 0.0}, "weights": {"G": 1e-9}, "checkpoints": ""}
    assert why(good) == ""
    assert why(good | {"losses": 1e-9}) == "losses: 1e-09"
    assert why(good | {"gradients": {"G": float("nan")}}) == "gradients of G: nan"
    bad = why(good | {"weights": {"G": 2e-8}, "later_losses": 2e-8, "checkpoints": "keys of G"})
    assert bad == "losses after 3 steps: 2e-08; weights of G: 2e-08; checkpoints: keys of G"


def test_losses_that_are_not_the_same_ones():
    assert loss_distance({"a": 1.0}, {"b": 1.0}) == loss_distance({"a": float("nan")}, {"a": 1.0}) == float("inf")
    assert loss_distance({"a": 0.01}, {"a": 0.0}) == pytest.approx(0.1)


def test_states_that_differ():
    state = {"G": {"w": torch.ones(2), "b": torch.zeros(1)}}
    assert different(state, state) == ""
    assert different({"G": dict(reversed(state["G"].items()))}, state) == "keys of G"
    assert different({"G": state["G"] | {"w": torch.ones(2).double()}}, state) == "G.w"
    assert different({"G": state["G"] | {"b": torch.ones(1)}}, state) == "G.b"


def test_the_error_rule():
    oracle, losses = {"G": torch.tensor([3.0, 4.0], dtype=torch.float64)}, {"loss": 1.0}
    own = {"losses": 0.0, "gradients": {"G": 0.01}}

    def judged(line: str, error: float, loss: float = 1.0, own=own) -> dict:
        row = {"line": line, "status": "ok", "losses": {"loss": loss}}
        judge(row, {"G": torch.tensor([3.0, 4.0 + 5 * error])}, oracle, losses, lines.FLOAT32, own)
        return row

    assert judged(lines.FUSE, 0.02)["status"] == "ok"
    row = judged(lines.FUSE, 0.03)
    assert row["status"] == "FAIL" and row["reason"] == "gradients of G: 0.03 from float64, limit 0.021"
    assert row["gradient_distance"]["G"] == pytest.approx(0.03, rel=1e-5)
    assert judged(lines.STOCK, 0.03)["status"] == "ok"  # it is what was published
    assert judged(lines.FUSE, 0.0, loss=1.001)["reason"] == "losses: 0.001 from float64, limit 0.0001"
    assert judged(lines.FUSE, 0.02, own={"error": "does not run"})["status"] == "FAIL"
    assert judged(lines.FUSE, 0.9, own={"losses": 0.0, "gradients": {"G": 5.0}})["status"] == "FAIL"


# ---- a step in another precision -------------------------------------------------------------------------------------


def test_draws_of_float64_are_those_of_float32():
    torch.manual_seed(0)
    want = torch.randn(3, 2), torch.rand((2,))
    with float64_by_default():
        torch.manual_seed(0)
        got = torch.randn(3, 2), torch.rand((2,))
        assert torch.zeros(1).dtype == torch.float64
    assert all(g.dtype == torch.float64 and torch.equal(g.float(), w) for g, w in zip(got, want))
    assert torch.zeros(1).dtype == torch.rand(1).dtype == torch.float32


def test_autocast_is_around_the_forward_parts_alone():
    net, seen = nn.Linear(4, 4, bias=False), []
    net.weight.register_hook(lambda grad: seen.append(torch.is_autocast_enabled("cpu")))
    x = torch.ones(1, 4)
    with forward_under_autocast(torch.device("cpu")):
        first = net(x)
        first.float().sum().backward()
        with torch.no_grad():
            net.weight.zero_()  # an update
        assert float(net(x).detach().abs().sum()) == 0  # not the weight that was cast before
        assert torch.is_autocast_enabled("cpu")
    assert first.dtype == torch.bfloat16 and seen == [False]
    assert torch.Tensor.backward.__name__ == "backward" and not torch.is_autocast_enabled("cpu")
