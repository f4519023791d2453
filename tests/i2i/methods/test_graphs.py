"""Steps as CUDA graphs: what the device computes hangs on nothing of the host, and a recorded step is the step."""

from __future__ import annotations

import sys

import pytest
import torch
from support.graph_stand_ins import TapeRecorder, TiedToHost, no_host_ties
from torch import Tensor

from benchmarks.zoo import batch
from i2i import graphs
from i2i.graphs import Draws, Graphs
from i2i.methods import METHODS, Method
from i2i.training import checkpoint
from i2i.training.schedule import Schedule

# Small networks, and settings that change what a step does.
NARROW = {"crop_size": 32, "load_size": 32, "ngf": 4, "ndf": 4}
CUT = NARROW | {"generator": "resnet_5blocks", "num_patches": 8, "feature_width": 8}
CYCLE = NARROW | {"generator": "resnet_1blocks", "pool_size": 2}
STAR = {"crop_size": 32, "g_conv_dim": 4, "d_conv_dim": 4, "g_repeat_num": 1, "d_repeat_num": 4}
CASES = {
    "cut": ("cut", CUT | {"ema": 0.9}),
    "cut, bfloat16": ("cut", CUT | {"precision": "bfloat16"}),
    "cut, float16": ("cut", CUT | {"precision": "float16"}),
    "cut, penalty": ("cut", CUT | {"gan_mode": "wgangp"}),
    "cut, past images": ("cut", CUT | {"negatives": "external", "queue_size": 20}),
    "cut, pooled": ("cut", CUT | {"feature_network": "reshape", "flip_equivariance": True}),
    "cut, published order": ("cut", CUT | {"published_order": True, "dropout": True, "batch_size": 2}),
    "cut, batch norm": ("cut", CUT | {"norm": "batch", "nce_idt": False}),
    "cut, monce": ("cut", CUT | {"contrast": "monce"}),
    "cut, hdce": ("cut", CUT | {"contrast": "hdce"}),
    "fastcut": ("fastcut", CUT),
    "sincut": ("sincut", {"crop_size": 32, "batch_size": 2, "ngf": 4, "ndf": 4}),
    "cyclegan": ("cyclegan", CYCLE | {"batch_size": 2}),
    "cyclegan, bfloat16": ("cyclegan", CYCLE | {"precision": "bfloat16", "ema": 0.9}),
    "cyclegan, penalty": ("cyclegan", CYCLE | {"gan_mode": "wgangp", "pool_size": 0, "norm": "batch"}),
    "pix2pix": ("pix2pix", NARROW | {"generator": "unet_32"}),
    "pix2pix, penalty": ("pix2pix", NARROW | {"generator": "unet_32", "gan_mode": "wgangp", "norm": "instance"}),
    "opgan": ("opgan", CYCLE | {"nsf": 4, "pair_sampling": "uniform"}),
    "opgan, siamese apart": ("opgan", CYCLE | {"nsf": 4, "register_siamese": False, "attention_on": "pixels"}),
    "munit": ("munit", NARROW | {"num_scales": 2, "style_dim": 2, "mlp_dim": 8, "n_res": 1, "recon_x_cyc_w": 1.0}),
    "munit, bfloat16": ("munit", NARROW | {"num_scales": 2, "mlp_dim": 8, "n_res": 1, "precision": "bfloat16"}),
    "stargan": ("stargan", STAR | {"n_critic": 2, "batch_size": 2}),
    "stargan, classes": ("stargan", STAR | {"n_critic": 1, "batch_size": 2, "label_kind": "classes"}),
    "matchgan": ("matchgan", STAR | {"n_critic": 3, "labelled_percentage": 50.0}),
    "discogan": ("discogan", {"ngf": 4, "ndf": 4, "batch_size": 2, "gan_curriculum": 4}),
}
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
# Whose recordings hold what others' do, or take long.
SLOW = {"cut, pooled", "cut, published order", "cut, monce", "cut, hdce", "cut, penalty", "cyclegan, bfloat16"}
SLOW |= {"opgan, siamese apart", "munit, bfloat16", "stargan, classes", "pix2pix, penalty"}
SLOW |= {"cut", "cut, float16", "cut, past images", "cut, batch norm", "cyclegan, penalty"}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
# Recordings, and graphs in each: of the variants that a method has (some come in nine steps only), and between calls of
# the host.
STEPS = 9
RECORDED = {
    **dict.fromkeys(CASES, [1]),
    **{"fastcut": [1, 1], "cut, pooled": [1, 1]},
    **{name: [2] for name in CASES if name.startswith(("cyclegan", "opgan"))},
    "stargan": [1, 1],
    "matchgan": [1, 1, 1],  # of four: one that updates G comes twice in twelve steps
    "discogan": [1, 1, 1],
}
VARIANTS = {name: len(graphs) for name, graphs in RECORDED.items()} | {"matchgan": 4}

# Whose backward passes on CUDA add in no fixed order (bilinear interpolation, adaptive pooling): two eager runs differ,
# nobody knows by how much yet, so that there what is recorded is counted and its losses are finite.
UNORDERED = {"opgan", "opgan, siamese apart", "cut, pooled"}


def build(name: str, impl: str, device: str = "cpu") -> Method:
    """With steps that go through a recorder."""
    method, settings = CASES[name]
    model = METHODS[method](METHODS[method].Config(**settings), device, impl)
    recorder = TapeRecorder() if device == "cpu" else graphs.CudaRecorder(torch.device(device))
    model.use_graphs(Graphs(model.device, recorder=recorder))
    return model


def given(model: Method, step: int) -> tuple[Tensor, ...]:
    images, *more = batch(model.config)
    return (images * (1 - 0.1 * step), *more)


@pytest.mark.parametrize("name", CASES)
def test_compute_is_not_tied_to_the_host(name):
    """Of every variant."""
    model = build(name, "auto")
    seen, run = set(), model.graphs.run

    def checked(compute, images, draws):
        if draws.variant in seen:
            return run(compute, images, draws)
        seen.add(draws.variant)
        with no_host_ties() as operators:
            losses = compute(images, draws)
        assert operators.count > 100
        return losses

    model.graphs.run = checked
    for step in range(6):
        model.step(*given(model, step))
        if len(seen) == VARIANTS[name]:
            return
    pytest.fail(f"only {seen}")


def test_a_tie_is_noticed():
    x = torch.ones(3)
    for tie in (
        lambda: float(x.sum()),
        lambda: bool(x[0] > 0),
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x[x > 0],
        lambda: x[[0, 1]],
        lambda: x.nonzero(),
        lambda: x + torch.tensor(1.0),
        lambda: x * torch.rand(3),
        lambda: x[torch.randperm(3).to(x.device)],
        lambda: x.index_select(0, torch.arange(2)),
    ):
        with pytest.raises(TiedToHost), no_host_ties():
            tie()
    with pytest.raises(TiedToHost, match="made by the test"), no_host_ties(x):
        x.sum()
    with no_host_ties():
        x.requires_grad_().mul(2).sum().backward()
        torch.zeros(3, device=x.device) + x


# On the CPU the reference: launches of kernels are nothing that a tape can run again.
@pytest.mark.parametrize(("device", "impl"), [("cpu", "reference"), pytest.param("cuda", "auto", marks=ON_GPU)])
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_step_is_the_step(name, device, impl, monkeypatch):
    """Losses and weights to the bit, with learning rates that change, pictures in between, and weights that somebody
    writes over."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    eager, recorded = (build(name, impl, device) for _ in range(2))
    found = []
    for model, calls in ((eager, sys.maxsize), (recorded, 1)):
        monkeypatch.setattr(graphs, "EAGER_CALLS", calls)
        torch.manual_seed(1)
        rows = []
        steps = STEPS if len(RECORDED[name]) > 1 else 5
        for step in range(steps):
            rows.append(model.step(*given(model, step)))
            if step == steps - 3:
                model.visuals(*given(model, 0))
                for optimizer in model.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] *= 0.5
                with torch.no_grad():
                    next(model.networks[model.generators[0]].parameters()).mul_(1.01)
        found.append(rows)
    for step, (one, other) in enumerate(zip(*found, strict=True)):
        assert list(one) == list(other)
        for loss in one:
            if device == "cuda" and name in UNORDERED:
                assert one[loss].isfinite() and other[loss].isfinite()
            else:
                assert torch.equal(one[loss], other[loss]), f"{loss} of step {step}"
    counts = sorted(recording.graphs() for recording in recorded.graphs.recordings.values())
    assert counts == RECORDED[name] and not eager.graphs.recordings
    if device == "cuda" and name in UNORDERED:
        return
    for kind in ("networks", "averages"):
        for (letter, one), other in zip(getattr(eager, kind).items(), getattr(recorded, kind).values(), strict=True):
            for key, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[key]), f"{letter} {key}"


@pytest.mark.parametrize("place", [pytest.param("in the middle", marks=pytest.mark.slow), "in the optimiser"])
def test_float16_goes_on_where_recording_fails(place, monkeypatch):
    """The scaler knows which optimisers have stepped, and they know its scale: of the step that was broken off."""
    monkeypatch.setattr(graphs, "EAGER_CALLS", 1)
    plain, model = build("cut, float16", "reference"), build("cut, float16", "reference")
    plain.use_graphs(Graphs(plain.device))
    model.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    plain.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    step, zero_grad = torch.optim.Adam.step, model.zero_grad

    def broken(self, *given):
        if model.graphs.recording:
            raise RuntimeError("no")
        return step(self, *given)

    if place == "in the optimiser":
        monkeypatch.setattr(torch.optim.Adam, "step", broken)
    else:
        model.zero_grad = lambda *names: broken_zero(*names)

        def broken_zero(*names):
            if model.graphs.recording and "G" in names:
                raise RuntimeError("no")
            zero_grad(*names)

    for number in range(4):
        found, wanted = (each.step(*given(model, number)) for each in (model, plain))
        for name, loss in wanted.items():
            torch.testing.assert_close(found[name], loss, rtol=1e-3, atol=1e-4)  # learning rates of float32
    assert model.graphs.reason == "recording failed, RuntimeError: no"


def test_a_checkpoint_that_is_put_back_is_recorded_anew(tmp_path, monkeypatch):
    """Optimisers get other tensors then, and a recording knows the old ones."""
    monkeypatch.setattr(graphs, "EAGER_CALLS", 1)
    models = [build("pix2pix", "reference") for _ in range(2)]
    eager, recorded = models
    monkeypatch.setattr(eager.graphs, "_record", lambda key, compute, made, draws: compute(made.batch, draws))
    for model in models:
        rates = Schedule(model.optimizers, model.config)
        for number in range(4):
            if number == 1:
                checkpoint.save(tmp_path / "checkpoint.pt", model, rates, 1)
            model.step(*given(model, number))
        checkpoint.restore(checkpoint.read(tmp_path), model, rates)
    assert not recorded.graphs.recordings
    for number in range(1, 4):
        one, other = (model.step(*given(model, number)) for model in models)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert recorded.graphs.recordings


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_after_a_failure_everything_goes_on(monkeypatch, capsys):
    """A value is waited for in the middle of a recording; drawing on the device, other graphs and the allocator have to
    work afterwards."""
    monkeypatch.setattr(graphs, "EAGER_CALLS", 1)
    model = build("pix2pix", "auto", "cuda")  # which has dropout
    for number in range(3):
        model.step(*given(model, number))
    assert model.graphs.recordings
    through, bad = model.graphs, []

    def waits(images, draws):
        bad.append(float(images[0].sum()))
        return {"x": images[0].sum() + torch.rand((), device="cuda")}

    for _ in range(3):
        through.run(waits, (torch.ones(5),), Draws())
    assert "recording failed" in through.reason and len(bad) >= 3
    for number in range(3):
        assert all(loss.isfinite() for loss in model.step(*given(model, number)).values())
    torch.cuda.empty_cache()


def test_a_step_that_is_tied_to_the_host_is_not_the_step(monkeypatch):
    """The comparison above can fail: here a number of the host goes into the recording."""
    monkeypatch.setattr(graphs, "EAGER_CALLS", 1)
    steps = iter(range(9))
    made = Graphs(torch.device("cpu"), recorder=TapeRecorder())
    found = [
        made.run(lambda images, draws: {"x": images[0] + next(steps)}, (torch.ones(()),), Draws())["x"] for _ in "abcd"
    ]
    assert [float(x) for x in found] == [1, 2, 2, 2]
