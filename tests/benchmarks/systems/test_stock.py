"""The stock steps of CycleGAN and MUNIT: that all contestants compute what ours does, and that the gate sees if not."""

from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.systems import stock, stock_cut, stock_cyclegan, stock_munit, turns
from benchmarks.systems.child import Child
from benchmarks.systems.stock import GRAPHS, OURS, PUBLISHED, StockMethod, available
from benchmarks.systems.stock_cyclegan import StockCycleGAN
from benchmarks.systems.stock_layers import Style
from benchmarks.systems.stock_munit import StockMUNIT
from benchmarks.systems.stock_munit_networks import AdaptiveNorm
from i2i.methods.cut import CUTConfig
from i2i.methods.cyclegan import CycleGAN, CycleGANConfig
from i2i.methods.munit import MUNIT, MUNITConfig


class System(NamedTuple):
    module: ModuleType
    Stock: Any
    Ours: Any
    Config: Any
    settings: dict[str, Any]


SYSTEMS = {
    # a pool of one image, from which the second step draws
    "cyclegan": System(
        stock_cyclegan,
        StockCycleGAN,
        CycleGAN,
        CycleGANConfig,
        {"generator": "resnet_2blocks", "ngf": 8, "ndf": 8, "pool_size": 1},
    ),
    "munit": System(
        stock_munit,
        StockMUNIT,
        MUNIT,
        MUNITConfig,
        {"ngf": 8, "ndf": 8, "mlp_dim": 16, "n_res": 1, "n_layers_d": 3, "num_scales": 2, "recon_x_cyc_w": 10.0},
    ),
}
STYLES = [Style(), Style(careful=True), Style(careful=True, compiled=True)]
CPU = torch.device("cpu")


@pytest.fixture
def uncompiled(monkeypatch):
    """The compiled styles, as they are before compilation."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def doubles():
    """What is built and drawn is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def images(step: int, count: int = 1, size: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.rand(count, 3, size, size, generator=generator) * 2 - 1 for _ in range(2)]


def three_steps(model, count: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses of each; the gradients of the first by network."""
    losses, gradients = [], {}
    for step in range(3):
        found = model.step(*images(step, count))
        losses.append({name: float(loss.detach()) for name, loss in found.items()})
        for name, net in model.networks.items() if not step else ():
            each = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
            gradients[name] = torch.cat([gradient.flatten() for gradient in each])
    return losses, gradients


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_step_is_ours_in_float64(name, style, count, doubles, uncompiled):
    """Where only a difference in what is computed, or drawn, can show."""
    system = SYSTEMS[name]
    config = system.Config(crop_size=32, batch_size=count, **system.settings)
    losses, gradients = three_steps(system.Stock(config, CPU, style), count)
    wanted, exact = three_steps(system.Ours(config, impl="reference"), count)
    for found, want in zip(losses, wanted):
        assert found == pytest.approx(want, rel=1e-6)  # MUNIT's least-squares loss is taken in float32
    for net, gradient in gradients.items():
        assert (gradient - exact[net]).norm() <= 1e-6 * exact[net].norm(), net


def gate(system: System, precision: str, folder, change: dict[str, Any] | None = None) -> dict[str, turns.Json]:
    """Rows of all contestants in one precision but for ours, which is compared with, in float32. `change`: of the
    settings of all but ours."""
    rows, paths = {}, {}
    for name in available(system.module.CONTESTANTS, CPU):
        variant = system.module.CONTESTANTS[name]._replace(precision="float32" if name == OURS else precision)
        settings = system.settings | (change or {} if name != OURS else {})
        paths[name] = folder / f"{len(paths)}.pt"
        child = Child(*stock.prepare(variant, system.Config, "cpu", 32, settings))
        rows[name] = {"name": name, "status": "ok", "reason": ""} | child.first(str(paths[name]))
    turns.judge(rows, paths, OURS, dict.fromkeys(rows, precision))
    return rows


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_gate_passes_every_contestant(name, precision, tmp_path, uncompiled):
    rows = gate(SYSTEMS[name], precision, tmp_path)
    assert len(rows) == 6 and {row["status"] for row in rows.values()} == {"ok"}, rows
    assert (max(rows[PUBLISHED]["gradient_distance"].values()) > 1e-3) == (precision == "bfloat16")


@pytest.mark.parametrize(
    ("name", "change", "term"),
    [("cyclegan", {"lambda_a": 10.5}, "cycle_A: "), ("munit", {"recon_x_w": 10.5}, "gradient of gen_a: ")],
)
def test_the_gate_sees_a_wrong_loss(name, change, term, tmp_path, uncompiled):
    rows = gate(SYSTEMS[name], "float32", tmp_path, change)
    assert rows.pop(OURS)["status"] == "ok"
    for row in rows.values():
        assert row["status"] == "FAIL" and term in row["reason"], row


def test_published_adain_cannot_take_scales_in_bfloat16():
    """Which is why the network that makes them stays in float32 under autocast."""
    norm, x, parameters = AdaptiveNorm(Style(), 4), torch.rand(1, 4, 8, 8).bfloat16(), torch.rand(1, 8)
    assert norm(x, parameters).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="BFloat16 but found Float"):
        norm(x, parameters.bfloat16())


@pytest.mark.parametrize("module", [stock_cut, stock_cyclegan, stock_munit])
def test_cuda_graphs_are_for_cuda(module):
    assert GRAPHS not in available(module.CONTESTANTS, CPU)
    assert available(module.CONTESTANTS, torch.device("cuda")) == list(module.CONTESTANTS)
    with pytest.raises(ValueError, match="device must be cuda .* got cpu"):
        module.contestant("cpu", GRAPHS, 32, {})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StockCycleGAN(CycleGANConfig(gan_mode="hinge"), CPU, Style()), "gan_mode must be lsgan .* 'hinge'"),
        (lambda: StockMUNIT(MUNITConfig(vgg_w=1, vgg_weights="x"), CPU, Style()), "vgg_w must be 0 .* got 1"),
    ],
)
def test_what_is_not_written_in_stock_torch_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_modes_of_compilation(monkeypatch):
    """Which networks are compiled, how, and where a step begins for CUDA graphs."""
    compiled, begun = [], []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(options) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    cut = {"ngf": 4, "ndf": 4, "generator": "resnet_6blocks", "num_patches": 16, "feature_width": 16}
    counts = {stock_cut.StockCUT: (CUTConfig(crop_size=32, **cut), 2)}
    counts |= {s.Stock: (s.Config(crop_size=32, **s.settings), n) for s, n in zip(SYSTEMS.values(), (4, 10))}
    for build, (config, count) in counts.items():
        for style in (Style(), Style(careful=True), Style(True, True), Style(True, True, True)):
            compiled.clear()
            begun.clear()
            model: StockMethod = build(config, CPU, style)
            mode = "reduce-overhead" if style.graphs else None
            assert compiled == [{"dynamic": False, "mode": mode}] * (count if style.compiled else 0)
            if style.graphs:
                model.step(*images(0))
            assert len(begun) == style.graphs


@pytest.mark.slow  # minutes each: 200 s of CPU time for MUNIT
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_compiled_step_is_the_careful_one(name):
    """And nothing is left uncompiled because of a break or of too many variants."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    system = SYSTEMS[name]
    config = system.Config(crop_size=32, **system.settings)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        wanted, found = (
            system.Stock(config, CPU, Style(True, compiled)).step(*images(0)) for compiled in (False, True)
        )
    for term, loss in found.items():
        assert float(loss.detach()) == pytest.approx(float(wanted[term].detach()), rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
