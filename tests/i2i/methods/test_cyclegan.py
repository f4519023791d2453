"""One step of CycleGAN against the published order of computation, in float64; precision, layout, resuming."""

import io

import pytest
import torch
import torch.nn.functional as F
from support.method_steps import discriminator_losses, gradient
from support.step_profiler import Profiler
from torch import Tensor

from i2i.errors import UsageError
from i2i.methods.cyclegan import CycleGAN, CycleGANConfig
from i2i.methods.losses import GANLoss

TINY = {
    "crop_size": 32,
    "ngf": 4,
    "ndf": 4,
    "generator": "resnet_4blocks",
    "discriminator": "n_layers",
    "n_layers_d": 2,
}


def images(seed: int = 0, count: int = 2, size: tuple[int, int] = (32, 32), dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, *size, generator=generator).to(dtype) * 2 - 1 for _ in range(2)]


def build(**options) -> CycleGAN:
    """A model in float64, with weights ten times the published ones: then all losses and gradients are of order 1."""
    model = CycleGAN(CycleGANConfig(**TINY | {"init_gain": 0.2} | options))
    for net in model.networks.values():
        net.double()
    return model


def weights(model: CycleGAN, *names: str) -> list[Tensor]:
    return [p for name in names for p in model.networks[name].parameters()]


def published(model: CycleGAN, a: Tensor, b: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """(losses, gradients of both generators, gradients of both discriminators) of a first step: all forwards, one
    backward; every forward by itself."""
    config, gan = model.config, GANLoss(model.config.gan_mode)
    g_a, g_b, d_a, d_b = model.networks.values()
    fake_b, fake_a = g_a(a), g_b(b)
    losses = {
        "G_A": gan.for_generator(d_a(fake_b)),
        "cycle_A": config.lambda_a * F.l1_loss(g_b(fake_b), a),
        "G_B": gan.for_generator(d_b(fake_a)),
        "cycle_B": config.lambda_b * F.l1_loss(g_a(fake_a), b),
    }
    if config.lambda_identity:
        losses["idt_A"] = config.lambda_b * config.lambda_identity * F.l1_loss(g_a(b), b)
        losses["idt_B"] = config.lambda_a * config.lambda_identity * F.l1_loss(g_b(a), a)
    unused = {"allow_unused": True, "materialize_grads": True}  # biases in front of a norm
    of_g = torch.autograd.grad(sum(losses.values()), weights(model, "G_A", "G_B"), **unused)
    rng = torch.Generator().manual_seed(config.seed)
    for name, judge, real, fake in (("D_A", d_a, b, fake_b), ("D_B", d_b, a, fake_a)):
        losses[name] = sum(discriminator_losses(gan, judge, real, fake.detach(), rng).values()) / 2
    of_d = torch.autograd.grad(losses["D_A"] + losses["D_B"], weights(model, "D_A", "D_B"), **unused)
    return losses, list(of_g), list(of_d)


VARIANTS = {
    "published": {},
    "no identity": {"lambda_identity": 0.0},
    "own lambdas": {"lambda_a": 3.0, "lambda_b": 7.0, "lambda_identity": 0.3},
    "batch norm": {"norm": "batch"},
    "no norm": {"norm": "none"},
    "wgangp": {"gan_mode": "wgangp"},
    "hinge": {"gan_mode": "hinge"},
    "pixel": {"discriminator": "pixel"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_gradients_and_update_are_the_published_ones(variant):
    model = build(**VARIANTS[variant])
    a, b = images()
    losses, of_g, of_d = published(model, a, b)
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in model.networks.items()}
    got = model.step(a, b)

    assert set(got) == set(losses) and not any(loss.requires_grad for loss in got.values())
    # float64, another order of sums
    torch.testing.assert_close(got, {name: losses[name].detach() for name in got}, rtol=1e-9, atol=1e-12)
    for names, wanted in ((("G_A", "G_B"), of_g), (("D_A", "D_B"), of_d)):
        given = list(map(gradient, weights(model, *names)))
        assert max(float(g.abs().max()) for g in wanted) > 1e-2  # something to compare
        torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-11)
        # Adam's first step is lr * g / (|g| + eps), whatever the betas.
        start = [p for name in names for p in before[name]]
        moved = [p - 2e-4 * g / (g.abs() + 1e-8) for p, g in zip(start, wanted, strict=True)]
        torch.testing.assert_close([p.detach() for p in weights(model, *names)], moved, rtol=0, atol=1e-6)


def test_images_of_two_sizes():
    """A and B need not have one size (preprocess=none); then nothing is put into one batch."""
    model = build()
    a, b = images(count=1)[0], images(count=1, size=(32, 40))[1]
    losses, of_g, of_d = published(model, a, b)
    got = model.step(a, b)
    torch.testing.assert_close(got, {name: losses[name].detach() for name in got}, rtol=1e-9, atol=1e-12)
    given = list(map(gradient, weights(model, "G_A", "G_B", "D_A", "D_B")))
    torch.testing.assert_close(given, of_g + of_d, rtol=1e-8, atol=1e-11)


def test_discriminators_follow_the_generators_and_see_older_translations():
    """In the second step, with a pool of one image: both discriminators judge what the pool answers, translated before
    the generators' update of that step or of the one before."""
    model = build(pool_size=1, seed=1)
    order, seen = [], []
    update, exchange = model.update, model.pools["fake_B"].exchange
    model.update = lambda *names: (order.extend(names), update(*names))
    model.pools["fake_B"].exchange = lambda fake: seen.append((fake, exchange(fake))) or seen[-1][1]
    translations = []
    for number in range(6):
        a, b = images(number, count=1)
        with torch.no_grad():
            translations.append(model.G_A(a))
        model.step(a, b)
    assert order == ["G", "D"] * 6
    for (fake, _), translation in zip(seen, translations, strict=True):
        torch.testing.assert_close(fake, translation, rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(fake, answer) for fake, answer in seen)


def test_no_gradient_reaches_the_discriminators_in_the_generators_step():
    model = build()
    update, found = model.update, {}

    def record(name):
        found[name] = [p.grad for p in weights(model, "D_A", "D_B") if p.dim() > 1]
        update(name)

    model.update = record
    model.step(*images())
    assert all(gradient is None for gradient in found["G"]) and all(g is not None for g in found["D"])
    assert all(p.requires_grad for net in model.networks.values() for p in net.parameters())


def state(model: CycleGAN) -> dict:
    """What a checkpoint holds, through a file."""
    file = io.BytesIO()
    parts = {name: part.state_dict() for name, part in (model.networks | model.optimizers).items()}
    torch.save(parts | {"extra": model.extra_state(), "rng": model.rngs["step"].get_state()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_resumed_run_goes_on_exactly():
    model = build(pool_size=2, gan_mode="wgangp")
    for number in range(3):
        model.step(*images(number))
    saved = state(model)
    resumed = build(pool_size=2, gan_mode="wgangp", seed=7)
    for name, part in (resumed.networks | resumed.optimizers).items():
        part.load_state_dict(saved[name])
    resumed.load_extra_state(saved["extra"])
    resumed.rngs["step"].set_state(saved["rng"])
    for number in range(3, 6):
        ours, theirs = model.step(*images(number)), resumed.step(*images(number))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(p, q) for p, q in zip(weights(model, "G_A", "D_B"), weights(resumed, "G_A", "D_B")))


def gradients(precision: str) -> dict[str, Tensor]:
    """Of one step, all those of a network as one vector."""
    model = CycleGAN(CycleGANConfig(**TINY | {"precision": precision, "init_gain": 0.2}))
    model.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision == "float16")
    losses = model.step(*images(dtype=torch.float32))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.dtype == gradient(p).dtype == torch.float32 for p in weights(model, *model.networks))
    return {name: torch.cat([gradient(p).flatten() for p in net.parameters()]) for name, net in model.networks.items()}


# Measured: 0.935 and 0.9937 at least; L1's gradient is a sign, which rounding turns at places.
@pytest.mark.parametrize("precision, alike", [("bfloat16", 0.9), ("float16", 0.98)])
def test_half_precision_goes_the_same_way(precision, alike):
    exact, half = gradients("float32"), gradients(precision)
    for name in exact:
        assert float(F.cosine_similarity(exact[name], half[name], dim=0)) > alike, name
        assert float(half[name].norm() / exact[name].norm()) == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["instance", pytest.param("batch", marks=pytest.mark.slow)])
def test_no_layout_copy_in_a_step(precision, norm, form):
    """No map or weight leaves the memory format of the run between the images and the updated parameters, the pool
    included."""
    sizes = {"crop_size": 48, "ngf": 5, "ndf": 5, "pool_size": 1, "precision": precision, "norm": norm}
    model = CycleGAN(CycleGANConfig(**TINY | sizes))
    given = [x.contiguous(memory_format=form) for x in images(size=(48, 48), dtype=torch.float32)]
    with Profiler() as profiler:
        model.step(*given)
        model.step(*given)
    assert profiler.operators > 500 and profiler.maps > 200
    assert profiler.reordered == [] and profiler.mostly(form)


def test_visuals_and_translate():
    model = CycleGAN(CycleGANConfig(**TINY))
    a, b = images(count=1, dtype=torch.float32)
    columns = model.visuals(a, b)
    assert list(columns) == ["real_A", "fake_B", "rec_A", "idt_B", "real_B", "fake_A", "rec_B", "idt_A"]
    with torch.no_grad():
        wanted = {
            "fake_B": model.G_A(a),
            "rec_A": model.G_B(model.G_A(a)),
            "idt_A": model.G_A(b),
            "fake_A": model.G_B(b),
        }
    for name, image in wanted.items():
        assert torch.equal(columns[name], image)
    assert torch.equal(model.translate(a), columns["fake_B"])
    assert not {"idt_A", "idt_B"} & set(CycleGAN(CycleGANConfig(**TINY, lambda_identity=0.0)).visuals(a, b))


def test_published_defaults():
    config = CycleGANConfig()
    model = CycleGAN(config)
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in model.networks.items()}
    assert sizes == {"G_A": 11_378_179, "G_B": 11_378_179, "D_A": 2_764_737, "D_B": 2_764_737}
    assert (config.lr, config.beta1, config.n_epochs, config.n_epochs_decay, config.pool_size) == (
        2e-4,
        0.5,
        100,
        100,
        50,
    )
    assert float(model.G_A.model[1].weight.detach().std()) == pytest.approx(0.02, rel=0.05)  # normal, not Xavier


def test_one_channel_to_three():
    model = CycleGAN(CycleGANConfig(**TINY, input_nc=1, lambda_identity=0.0))
    a, b = images(dtype=torch.float32)
    losses = model.step(a[:, :1], b)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.translate(a[:, :1]).shape == b.shape


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input_nc": 1}, r"lambda_identity must be 0 when input_nc \(1\) and output_nc differ, got 0.5"),
        ({"lambda_a": -1}, "lambda_a must be 0 or more, got -1"),
        ({"pool_size": -1}, "pool_size must be 0 or more, got -1"),
        ({"crop_size": 42}, "crop_size must be a multiple of 4 for resnet_4blocks, at least 32, got 42"),
        ({"generator": "unet_128"}, "crop_size must be a multiple of 128 for unet_128, at least 32, got 32"),
        ({"generator": "stylegan2"}, "generator must be a resnet or a unet, got stylegan2"),
        ({"discriminator": "stylegan2"}, "discriminator must be one of basic, n_layers, pixel, got stylegan2"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UsageError, match=message):
        CycleGANConfig(**TINY | options)
