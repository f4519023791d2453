"""kernels.accelerate: two lines in a trainer that knows nothing of this library, undone by kernels.unfuse."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from support.fuse_cases import Foreign, check_same
from support.norm_stand_ins import Projected
from torch import nn

import kernels
from kernels.nce.images import mark_images, marked_images

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def malloc_left_alone(monkeypatch):
    """What accelerate asks of the whole process would hold for all other tests in it."""
    asked = []
    monkeypatch.setattr("kernels.fusing.accelerating.keep_freed_memory", lambda: asked.append(True) or True)
    return asked


def foreign():
    torch.manual_seed(0)
    return Foreign()


def train(model, steps=3):
    """Losses of a plain loop, and the model after it."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.5, 0.999))
    losses = []
    for i in range(steps):
        x = X.to(next(model.parameters()).dtype).roll(i, -1)
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_three_optimiser_steps_are_the_same():
    stock, ours = foreign().double(), kernels.accelerate(foreign().double())
    assert train(ours) == pytest.approx(train(stock), rel=1e-12)
    for (name, a), b in zip(ours.state_dict().items(), stock.state_dict().values(), strict=True):
        # Adam divides by the root of a square: where the gradient is rounding error, so is the sign of its step
        if not name.endswith("bias"):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_weights_are_channels_last_and_values_stay():
    model = foreign()
    parameters = list(model.parameters())
    kernels.accelerate(model, channels_last=True)
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert convolutions and all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert model.stem[0](X).is_contiguous(memory_format=torch.channels_last)
    assert f"channels last: {sum(isinstance(m, nn.Conv2d) for m in model.modules())} weights" in str(model.fuse_report)
    for a, b in zip(model.parameters(), foreign().parameters()):
        assert torch.equal(a, b)
    volumes = kernels.accelerate(nn.Sequential(nn.Conv3d(2, 4, 3), nn.InstanceNorm3d(4), nn.ReLU()), channels_last=True)
    assert volumes[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    plain = kernels.accelerate(foreign(), channels_last=False)
    assert all(p.is_contiguous() for p in plain.parameters()) and "channels last" not in str(plain.fuse_report)


def test_processors_without_avx512_keep_weights_contiguous(monkeypatch):
    for capability, text in (
        ("AVX2", "contiguous: this processor has no AVX-512"),
        ("AVX512", "channels last: 8 weig"),
    ):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        model = kernels.accelerate(foreign())
        assert text in str(model.fuse_report)
        assert model.stem[0].weight.is_contiguous() == (capability == "AVX2")
        model = kernels.accelerate(foreign(), "bfloat16")
        assert "channels last: 8 weig" in str(model.fuse_report) and not model.stem[0].weight.is_contiguous()
        assert ("slower than in float32" in str(model.fuse_report)) == (capability == "AVX2")


def test_torchs_own_norms_keep_weights_contiguous_on_a_cpu():
    class Functional(nn.Module):
        def forward(self, x):
            return nn.functional.instance_norm(x)

    for norm in (nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, eps=-1.0), Functional()):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
        kernels.accelerate(model)
        assert model[0].weight.is_contiguous() and "weights stay contiguous: 1 runs" in str(model.fuse_report)
        with pytest.raises(ValueError, match="channels_last: got True, want None or False: 1 runs torch's own"):
            kernels.accelerate(model, channels_last=True)


@pytest.mark.parametrize("precision", ["bfloat16", torch.bfloat16])
def test_precision(precision):
    model = kernels.accelerate(foreign(), precision)
    seen = []
    model.blocks.register_forward_hook(lambda m, args, y: seen.append(y.dtype))
    y = model(X)
    assert y.dtype == torch.float32 and seen == [torch.bfloat16] and not torch.is_autocast_enabled("cpu")
    assert float((y - foreign()(X)).detach().abs().max()) < 0.1
    y.mean().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X).dtype == torch.bfloat16  # the caller's own business
    assert type(model).__name__ == "Foreign" and isinstance(model, Foreign)
    kernels.accelerate(model)  # the last call decides
    assert model(X).dtype == torch.float32 and seen[-1] == torch.float32


def test_results_of_any_structure_come_back_in_float32():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, scale=1.0, *, ids=None):
            y = self.conv(x) * scale
            return {"y": y, "list": [y, (ids, None, "text")]}

    model = kernels.accelerate(Several(), "bfloat16")
    ids = torch.arange(3)
    result = model(X, 2.0, ids=ids)
    assert result["y"].dtype == torch.float32 and result["list"][0].dtype == torch.float32
    assert result["list"][1] == (ids, None, "text")
    kernels.unfuse(model)
    assert type(model) is Several


def test_rows_of_a_sampler_still_say_how_many_images_they_are_of():
    class Rows(nn.Module):
        def forward(self, x):
            rows = x.bfloat16().flatten(2).transpose(1, 2).flatten(0, 1)
            mark_images(rows, len(x))
            return rows

    rows = kernels.accelerate(Rows(), "bfloat16")(torch.randn(3, 8, 2, 2))
    assert rows.dtype == torch.float32 and marked_images([rows], [rows]) == 3


def test_an_error_leaves_no_autocast_behind():
    model = kernels.accelerate(foreign(), "bfloat16")
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 5, 16, 16))
    assert not torch.is_autocast_enabled("cpu")


def test_freed_memory_is_kept_on_a_cpu(malloc_left_alone):
    model = kernels.accelerate(foreign())
    assert malloc_left_alone == [True] and "freed memory is kept" in str(model.fuse_report)
    kernels.fuse(foreign())
    kernels.accelerate(foreign().to("meta"))
    assert malloc_left_alone == [True]


def test_the_last_call_decides_about_memory_order():
    model = kernels.accelerate(foreign(), channels_last=True)
    assert not model.stem[0].weight.is_contiguous()
    kernels.accelerate(model, channels_last=False)
    assert all(p.is_contiguous() for p in model.parameters())


def test_notes_outlive_another_fuse():
    model = kernels.accelerate(foreign(), "bfloat16")
    notes = list(model.fuse_report.notes)
    assert notes and kernels.fuse(model).fuse_report.notes == notes


def test_what_an_adain_holds_does_not_run():
    """Its instance norm is torch's own still, and not called: weights may be channels last."""
    model = nn.ModuleList([nn.Conv2d(3, 4, 3), Projected(4)])
    kernels.accelerate(model, channels_last=True)
    assert not model.fuse_report.left and not model[0].weight.is_contiguous()


def test_a_norm_alone():
    norm = nn.InstanceNorm2d(3, affine=True)
    for _ in range(2):
        kernels.accelerate(norm, "bfloat16")
        assert norm.fuse_report.replaced and not norm.fuse_report.left
    assert norm(X).dtype == torch.float32
    kernels.unfuse(norm)
    assert type(norm) is nn.InstanceNorm2d and vars(norm).keys() == vars(nn.InstanceNorm2d(3)).keys()


def test_twice_is_once():
    once, twice = kernels.accelerate(foreign(), "bfloat16"), foreign()
    for _ in range(2):
        kernels.accelerate(twice, "bfloat16")
    assert twice.fuse_report == once.fuse_report and type(twice).__mro__ == type(once).__mro__
    assert torch.equal(twice(X), once(X))


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_unfuse_gives_back_the_model(precision):
    stock = foreign()
    model = kernels.accelerate(foreign(), precision, channels_last=True)
    model(X)
    state = copy.deepcopy(model.state_dict())
    assert kernels.unfuse(model) is model
    for (name, a), b in zip(model.named_modules(), stock.modules(), strict=True):
        assert type(a) is type(b) and vars(a).keys() == vars(b).keys(), name
    assert all(p.is_contiguous() for p in model.parameters())
    assert all(torch.equal(a, state[name]) for name, a in model.state_dict().items())
    stock.load_state_dict(state)
    check_same(model.double(), stock.double(), X.double(), tolerance=0)
    assert not hasattr(kernels.unfuse(model), "fuse_report")


def test_checkpoints_go_both_ways():
    stock, ours = foreign(), kernels.accelerate(foreign(), "bfloat16")
    train(ours, 1)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    stock.load_state_dict(torch.load(file))
    again = kernels.accelerate(foreign())
    again.load_state_dict(stock.state_dict())
    kernels.unfuse(ours)
    for a, b, c in zip(ours.parameters(), stock.parameters(), again.parameters()):
        assert torch.equal(a, b) and torch.equal(b, c)


def test_wholes_are_saved_copied_and_pickled():
    model = kernels.accelerate(foreign(), "bfloat16")
    want = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(X), want)
        assert type(kernels.unfuse(other)) is Foreign


def test_wrapped_models():
    model = nn.DataParallel(foreign())  # on a CPU it calls what is inside
    assert kernels.accelerate(model, "bfloat16") is model and type(model) is nn.DataParallel
    assert model(X).dtype == torch.float32 and type(model.module).__mro__[1].__name__ == "InAutocast"
    kernels.unfuse(model)
    assert type(model.module) is Foreign
    compiled = torch.compile(foreign(), backend="eager")
    kernels.accelerate(compiled, "bfloat16")
    assert torch.equal(compiled(X), kernels.accelerate(foreign(), "bfloat16")(X))


@pytest.fixture
def process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("first", ["accelerate", "wrap"])
def test_distributed_data_parallel(process_group, first):
    wrap = nn.parallel.DistributedDataParallel
    alone = kernels.accelerate(foreign())
    model = wrap(kernels.accelerate(foreign())) if first == "accelerate" else kernels.accelerate(wrap(foreign()))
    assert type(model) is wrap and train(model) == train(alone)
    name = "" if first == "accelerate" else "module."
    report = (model.module if first == "accelerate" else model).fuse_report
    assert (f"{name}blocks.1", f"the residual merged into {name}blocks.1.body") in report.merged


def test_before_and_after_to_and_for_an_average():
    before, after = kernels.accelerate(foreign().double()), kernels.accelerate(foreign()).double()
    assert torch.equal(before(X.double()), after(X.double()))
    average = torch.optim.swa_utils.AveragedModel(after)  # a deep copy
    train(after, 1)
    average.update_parameters(after)
    torch.testing.assert_close(average(X.double()), after(X.double()))


def test_compiles_whole():
    model = kernels.accelerate(foreign(), "bfloat16")
    want = model(X)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(X), want)


def test_bad_arguments():
    for precision in ("float16", torch.float16):
        with pytest.raises(ValueError, match="precision: got .*float16.*, want None or 'bfloat16': .*gradient scaler"):
            kernels.accelerate(foreign(), precision)
    with pytest.raises(ValueError, match="precision: got 16, want None or 'bfloat16'"):
        kernels.accelerate(foreign(), 16)
    with pytest.raises(TypeError, match="channels_last: got "):
        kernels.accelerate(foreign(), channels_last=1)
    for function in (kernels.accelerate, kernels.unfuse):
        with pytest.raises(TypeError, match="model: got str, want a torch.nn.Module"):
            function("model")
    model = foreign()
    model.forward = model.forward  # on the object
    with pytest.raises(ValueError, match="precision: got 'bfloat16' for a Foreign: its forward was replaced"):
        kernels.accelerate(model, "bfloat16")


# ---- python -m kernels.fusing ----------------------------------------------------------------------------------------


def command(folder, *words):
    (folder / "mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU())\n"
        "net, text = make(), 'text'\n"
    )
    arguments = [sys.executable, "-m", "kernels.fusing", *words]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=folder, timeout=120)


def test_dry_run(tmp_path):
    done = command(tmp_path, "mine:make", "--input", "1,3,16,16", "--precision", "bfloat16")
    assert done.returncode == 0, done.stderr
    for text in ("1 replaced, 1 merged, 0 left", "ReLU merged into 1", "in float64, outputs differ by", "before, "):
        assert text in done.stdout


def test_dry_run_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    import kernels.fusing.__main__ as program

    command(tmp_path, "--help")
    monkeypatch.chdir(tmp_path)
    for words, text in [
        (["mine.py:nothing"], "mine.py has no nothing"),
        (["nowhere:make"], "there is no module nowhere"),
        (["nowhere.py:make"], "there is no file nowhere.py"),
        (["mine.py:text"], "gives a str, want a torch.nn.Module"),
        (["mine.py"], "want such as my_package.networks:make_generator"),
        (["mine.py:net", "--input", "1,4,16,16"], "the model does not take [(1, 4, 16, 16)] (RuntimeError"),
        (["mine.py:net", "--device", "gpu"], "--device: got 'gpu', want cpu or cuda"),
    ]:
        monkeypatch.setattr(sys, "argv", ["kernels.fusing", *words])
        assert program.main() == 2 and text in capsys.readouterr().err
    (tmp_path / "grouped.py").write_text("import torch\nnet = torch.nn.Sequential(torch.nn.GroupNorm(2, 4))\n")
    monkeypatch.setattr(sys, "argv", ["kernels.fusing", "grouped.py:net"])
    assert program.main() == 0 and "stay contiguous" in capsys.readouterr().out  # by rule, not by force
    monkeypatch.setattr(sys, "argv", ["kernels.fusing", "mine.py:net", "--input", "1,x"])
    with pytest.raises(SystemExit):
        program.main()
    assert "want whole numbers with commas" in capsys.readouterr().err
