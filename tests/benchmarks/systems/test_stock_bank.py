"""CUT's step with a bank of negatives in stock torch: three steps of it are those of ours."""

from __future__ import annotations

import pytest
import torch
from support.method_steps import gradient

from benchmarks.systems.stock_cut import StockCUT
from benchmarks.systems.stock_layers import Style
from i2i.methods import cut
from i2i.methods.cut import CUT, CUTConfig

TINY = {"crop_size": 32, "generator": "resnet_6blocks", "ngf": 8, "ndf": 8, "feature_width": 16, "num_patches": 16}
CPU = torch.device("cpu")


@pytest.fixture
def doubles(monkeypatch):
    """What is built and drawn is float64, and ours keeps it in its queue."""
    monkeypatch.setattr(cut, "gathered", lambda rows: [layer.flatten(0, 1) for layer in rows])
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def three_steps(model) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Losses of each, and the gradients of the last."""
    losses = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        found = model.step(*(torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)))
        losses.append({name: float(loss.detach()) for name, loss in found.items()})
    return losses, torch.cat([gradient(p).flatten() for net in model.networks.values() for p in net.parameters()])


@pytest.mark.parametrize("style", [Style(), Style(careful=True)], ids=["published", "careful"])
def test_the_bank_in_stock_torch_is_ours(style, doubles):
    """Queues of 40 rows, which 32 a step fill more than twice: from the second step on with averaged weights."""
    config = CUTConfig(batch_size=2, negatives="external", queue_size=40, lr=0.01, **TINY)
    losses, gradients = three_steps(StockCUT(config, CPU, style))
    wanted, exact = three_steps(CUT(config))
    for found, want in zip(losses, wanted, strict=True):
        assert found == pytest.approx(want, rel=1e-5)
    assert (gradients - exact).norm() <= 1e-4 * exact.norm()
    without = three_steps(StockCUT(CUTConfig(batch_size=2, **TINY), CPU, style))[0]
    assert abs(without[0]["NCE"] - losses[0]["NCE"]) > 1e-3  # the bank is in it


@pytest.mark.parametrize("changes", [{"negatives": "minibatch"}, {"contrast": "dcl"}])
def test_other_losses_are_refused(changes):
    with pytest.raises(ValueError, match="contrast=nce, negatives=image or external"):
        StockCUT(CUTConfig(**TINY, **changes), CPU, Style())
