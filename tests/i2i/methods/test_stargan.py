"""StarGAN and MatchGAN's networks against what the published ones returned, and StarGAN's step against its formulas."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.method_steps import assert_gradients, changed, in_float64, record_gradients, resumed, state
from support.step_profiler import Profiler

import kernels
from i2i.data.labels import LabelSpace
from i2i.errors import UsageError
from i2i.inference import weights
from i2i.methods.stargan import StarGAN, StarGANConfig
from i2i.networks import stargan
from i2i.networks.stargan import (
    MatchGANDiscriminator,
    MatchGANGenerator,
    StarGANDiscriminator,
    StarGANGenerator,
)

GENERATORS = {"stargan_gen": StarGANGenerator, "matchgan_gen": MatchGANGenerator}
IMPLS = ("auto", "reference")
# float32 on both sides. 3e-7 was measured on outputs of standard deviation 0.1 after 20 layers, and 1.2e-7 on the
# discriminators' logits of up to 0.25; the rest is room for other convolution algorithms.
TOLERANCE = 2e-6


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", GENERATORS)
@torch.no_grad()
def test_generator_is_the_published_one(name, impl, monkeypatch):
    """In eval mode, too, it does what the published one does in train mode: see TrackedInstanceNorm2d."""
    wanted = golden.load(name)
    net = GENERATORS[name](conv_dim=32, impl=impl)
    assert golden.fill(net) == wanted["keys"].tolist()
    x, c = golden.image("x", tuple(wanted["input_shape"])), torch.from_numpy(wanted["labels"])
    before = {key: value.clone() for key, value in net.named_buffers()}
    y = net.eval()(x, c)
    assert all(torch.equal(value, before[key]) for key, value in net.named_buffers())
    want = torch.from_numpy(wanted["output_train"])
    torch.testing.assert_close(y, want, atol=TOLERANCE, rtol=0)

    # The trap: the running statistics are those of the published file, and would give this.
    with monkeypatch.context() as patch:
        patch.setattr(stargan.TrackedInstanceNorm2d, "forward", kernels.InstanceNorm2d.forward)
        trapped = net(x, c)
    torch.testing.assert_close(trapped, torch.from_numpy(wanted["output_eval"]), atol=TOLERANCE, rtol=0)
    assert (trapped - y).abs().mean() > 0.03  # outputs have a standard deviation of 0.1

    torch.testing.assert_close(net.train()(x, c), want, atol=TOLERANCE, rtol=0)
    first = next(module for module in net.modules() if isinstance(module, kernels.InstanceNorm2d))
    for name in ("mean", "var"):
        running = torch.from_numpy(wanted[f"first_running_{name}_after"])
        torch.testing.assert_close(getattr(first, f"running_{name}"), running, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["stargan_dis", "matchgan_dis"])
@torch.no_grad()
def test_discriminator_is_the_published_one(name):
    wanted = golden.load(name)
    net = (StarGANDiscriminator if name == "stargan_dis" else MatchGANDiscriminator)(64, conv_dim=16)
    assert golden.fill(net) == wanted["keys"].tolist()
    x = golden.image("x", tuple(wanted["input_shape"]))
    src, cls = net(x)
    torch.testing.assert_close(src, torch.from_numpy(wanted["src"]), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(cls, torch.from_numpy(wanted["cls"]), atol=TOLERANCE, rtol=0)
    if name == "matchgan_dis":
        features = net.features(torch.cat([x, golden.image("y", x.shape)]))
        pair = net.match(features, [0, 1], [2, 3])
        torch.testing.assert_close(pair, torch.from_numpy(wanted["pair"]), atol=TOLERANCE, rtol=0)


def test_published_parameter_counts():
    def count(net: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    with torch.device("meta"):
        assert count(StarGANGenerator()) == count(MatchGANGenerator()) == 8_430_528
        assert count(StarGANDiscriminator()) == 44_762_048
        assert count(MatchGANDiscriminator()) == 44_794_816


@torch.no_grad()
def test_matchgan_takes_stargans_weights():
    """main.0 to 11 are encoder.0 to 11, main.12 to 22 are decoder.0 to 10."""
    one, two = StarGANGenerator(conv_dim=4), MatchGANGenerator(conv_dim=4)
    state = {}
    for key, value in one.state_dict().items():
        _, index, rest = key.split(".", 2)
        half = f"encoder.{index}" if int(index) < 12 else f"decoder.{int(index) - 12}"
        state[f"{half}.{rest}"] = value
    two.load_state_dict(state)
    x, c = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 1, 0, 1]])
    torch.testing.assert_close(two(x, c), one(x, c), atol=0, rtol=0)


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_label_planes_keep_the_images_memory_format(form):
    x = torch.zeros(2, 3, 8, 8).contiguous(memory_format=form)
    with Profiler() as profiler:
        both = stargan.with_label(x, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert both.is_contiguous(memory_format=form) and profiler.mostly(form)
    assert both[:, 3:].amin((2, 3)).tolist() == both[:, 3:].amax((2, 3)).tolist() == [[1, 0], [0, 1]]


def test_match_is_the_third_convolution_on_both_maps():
    """In float64: the published order of work, features anew for every pair and one convolution of both."""
    net = MatchGANDiscriminator(32, conv_dim=4, repeat_num=4).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    first, second = [0, 2, 1, 0], [1, 3, 1, 3]
    want = net.conv3(torch.cat([net.main(x[first]), net.main(x[second])], 1)).flatten(1)
    torch.testing.assert_close(net.match(net.features(x), first, second), want, atol=1e-12, rtol=0)


def test_image_sizes_that_cannot_work_are_refused():
    with pytest.raises(UsageError, match=r"image_size must be at least 64 for 6 halvings \(repeat_num\), got 48"):
        StarGANDiscriminator(48)
    with pytest.raises(UsageError, match="want images of 64 x 64"):
        StarGANDiscriminator(64, conv_dim=4)(torch.zeros(1, 3, 128, 128))


TINY = {"crop_size": 16, "g_conv_dim": 4, "d_conv_dim": 4, "g_repeat_num": 1, "d_repeat_num": 3, "batch_size": 4}


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels of three attributes; as classes, no more than one is set."""
    images = golden.image("x", (4, 3, 16, 16)).to(dtype)
    return images, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_published_defaults():
    config = StarGANConfig()
    assert (config.lambda_cls, config.lambda_rec, config.lambda_gp, config.n_critic) == (1, 10, 10, 5)
    assert (config.lr, config.beta1, config.beta2, config.batch_size, config.steps) == (1e-4, 0.5, 0.999, 16, 200_000)
    assert (config.crop_size, config.center_crop) == (128, 178)


@pytest.mark.parametrize("kind", ["attributes", "classes"])
def test_losses_and_gradients_are_those_of_the_formulas(kind):
    model = in_float64(StarGAN(StarGANConfig(**TINY, label_kind=kind, selected_attrs=("A", "B", "C"))))
    model.iteration = 4  # the fifth updates G, too
    gradients = record_gradients(model)
    x, c = batch()
    losses = model.step(x, c)

    D, G = model.D, model.G
    targets = c[torch.randperm(4, generator=torch.Generator().manual_seed(0))]
    share = torch.rand(4, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()

    def classification(logits, labels):
        if kind == "classes":
            return F.cross_entropy(logits, labels.argmax(1))
        each = F.binary_cross_entropy(logits.sigmoid(), labels.double(), reduction="none")
        return each.sum() / 4

    fake = G(x, targets)
    mixed = (share * x + (1 - share) * fake).detach().requires_grad_()
    slope = torch.autograd.grad(D(mixed)[0].sum(), mixed, create_graph=True)[0]
    wanted = {
        "D_real": -D(x)[0].mean(),
        "D_fake": D(fake.detach())[0].mean(),
        "D_cls": classification(D(x)[1], c),
        "D_gp": (slope.square().sum((1, 2, 3)).sqrt() - 1).square().mean(),
        "G_fake": -D(fake)[0].mean(),
        "G_cls": classification(D(fake)[1], targets),
        "G_rec": (x - G(fake, c)).abs().mean(),
    }
    assert list(losses) == list(wanted)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, wanted[name].detach(), atol=1e-12, rtol=1e-12, msg=name)
    d_loss = wanted["D_real"] + wanted["D_fake"] + wanted["D_cls"] + 10 * wanted["D_gp"]
    assert_gradients(gradients["D"], d_loss, D)
    assert_gradients(gradients["G"], wanted["G_fake"] + wanted["G_cls"] + 10 * wanted["G_rec"], G)


def test_g_is_updated_every_fifth_time_and_a_resumed_run_goes_on_exactly(tmp_path):
    models = [StarGAN(StarGANConfig(**TINY, selected_attrs=("A", "B", "C")))]
    given = batch(torch.float32)
    for step in range(1, 7):
        before = state(models[0])
        rows = [model.step(*given) for model in models]
        assert changed(models[0], before) == ({"D", "G"} if step == 5 else {"D"})
        assert bool(rows[0]["G_rec"]) == (step >= 5)
        if step == 3:
            models.append(resumed(models[0], tmp_path / "checkpoint.pt"))
    assert models[0].D.conv1.weight.requires_grad and rows[0] == rows[1]
    torch.testing.assert_close(*map(state, models), atol=0, rtol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_layout_copy_in_a_step(precision, form):
    """No map or weight leaves the memory format of the run between the images and the updated parameters."""
    # No map with as many rows as channels: see Profiler.
    widths = {"g_conv_dim": 6, "d_conv_dim": 5}
    options = TINY | widths | {"selected_attrs": ("A", "B", "C"), "n_critic": 1, "precision": precision}
    model = StarGAN(StarGANConfig(**options))
    x, c = batch(torch.float32)
    x = x.contiguous(memory_format=form)
    with Profiler() as profiler:
        model.step(x, c)
        model.step(x, c)
    assert profiler.operators > 500 and profiler.maps > 200
    assert profiler.reordered == [] and profiler.mostly(form)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_trains(precision):
    config = StarGANConfig(**TINY, selected_attrs=("A", "B", "C"), n_critic=1, precision=precision)
    model, exact = StarGAN(config), StarGAN(StarGANConfig(**TINY, selected_attrs=("A", "B", "C"), n_critic=1))
    wanted = exact.step(*batch(torch.float32))
    before = state(model)
    for name, loss in model.step(*batch(torch.float32)).items():
        # D has 3 layers of 8 significant bits; G, between its norms, a few more.
        assert loss.dtype == torch.float32 and float(loss) == pytest.approx(float(wanted[name]), rel=0.05, abs=0.02)
    assert changed(model, before) == {"D", "G"}


def test_learning_rates():
    def rates(*, done: list[int], **options) -> list[float]:
        model = StarGAN(StarGANConfig(**TINY, **options))
        return [model.config.lr * model.lr_factor(step) for step in done]

    done = [0, 100_000, 100_999, 101_000, 150_000, 199_999]
    published = [1e-4, 1e-4, 1e-4, 1e-4 - 1e-9, 1e-4 - 50e-9, 1e-4 - 99e-9]  # 1e-4 / 100,000 every 1000 iterations
    assert rates(done=done) == pytest.approx(published, rel=1e-12)
    linear = [1e-4, 1e-4, 0.99001e-4, 0.99e-4, 0.5e-4, 1e-9]
    assert rates(done=done, lr_decay="linear") == pytest.approx(linear, rel=1e-9)

    model = StarGAN(
        StarGANConfig(**TINY, selected_attrs=("A", "B", "C"), lr_decay="linear", steps=2, num_iters_decay=2)
    )
    for rate in (1e-4, 0.5e-4):
        model.step(*batch(torch.float32))
        assert {group["lr"] for o in model.optimizers.values() for group in o.param_groups} == {rate}


def test_translation_ignores_eval_mode_and_leaves_the_model_alone():
    model = StarGAN(StarGANConfig(**TINY, selected_attrs=("A", "B", "C")))
    x, c = batch(torch.float32)
    before = state(model)
    y = model.translate(x, c)
    assert all(torch.equal(v, before["G"][k]) for k, v in model.G.state_dict().items()) and model.G.training
    with torch.no_grad():
        torch.testing.assert_close(y, model.G(x, c), atol=1e-6, rtol=0)
    columns = model.visuals(x, c)
    assert list(columns) == ["real", "A", "B", "C"]
    torch.testing.assert_close(
        columns["B"], model.translate(x, torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 0]]))
    )


def test_label_space():
    celeba = LabelSpace(StarGANConfig().selected_attrs, StarGANConfig().exclusive)
    assert len(celeba.vectors) == 16  # no hair colour or one of three, times Male, times Young
    assert celeba.vectors == sorted(celeba.vectors) and celeba.vectors[-1] == (1, 0, 0, 1, 1)
    assert len(LabelSpace(["A", "B", "C", "D"], ["A+B", "C+D+Z"]).vectors) == 9  # 3 times 3
    assert LabelSpace(["A", "B", "C"], classes=True).vectors == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    edits = celeba.edits(torch.tensor([[1.0, 0, 0, 1, 0]]))
    assert edits["Blond_Hair"].tolist() == [[0, 1, 0, 1, 0]] and edits["Black_Hair"].tolist() == [[1, 0, 0, 1, 0]]
    assert edits["Male"].tolist() == [[1, 0, 0, 0, 0]] and edits["Young"].tolist() == [[1, 0, 0, 1, 1]]
    with pytest.raises(UsageError, match="names, each once, got A, A"):
        LabelSpace(["A", "A"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 32}, "crop_size must be at least 64 for d_repeat_num=6, got 32"),
        ({"crop_size": 130}, "crop_size must be a multiple of 4"),
        ({"dataset_mode": "unaligned"}, "dataset_mode must be one of attributes, got unaligned"),
        ({"lr_policy": "step"}, "lr_policy must be left alone"),
        ({"output_nc": 1}, "output_nc must be as input_nc"),
        ({"selected_attrs": ()}, "selected_attrs must be names, each once, got none"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        StarGANConfig(**options)


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (StarGANGenerator(4, 3, 2, image_nc=1), "StarGAN generator, 2 blocks, width 4, 1 channels, 3 labels"),
        (MatchGANGenerator(4, repeat_num=1), "MatchGAN generator, 1 blocks, width 4, 3 channels, 5 labels"),
        (StarGANGenerator(4, repeat_num=0), "StarGAN generator, 0 blocks, width 4, 3 channels, 5 labels"),
        (MatchGANGenerator(4), "MatchGAN generator, 6 blocks, width 4, 3 channels, 5 labels"),
        (StarGANDiscriminator(64, 4, 2, 4), "StarGAN discriminator of 64 x 64, width 4, 3 channels, 2 labels"),
        (MatchGANDiscriminator(64, 4, 2), "MatchGAN discriminator of 64 x 64, width 4, 3 channels, 2 labels"),
    ],
)
def test_weights_are_recognised(tmp_path, net, sentence):
    weights.save_published(tmp_path, "latest", {"G": net})
    again = weights.load(tmp_path / "latest_net_G.pth")
    assert type(again) is type(net) and again.recognised.startswith(sentence)
    torch.testing.assert_close(again.state_dict(), net.state_dict(), atol=0, rtol=0)
