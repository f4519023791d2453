"""One step of pix2pix against the published order of computation, in float64; translation without a trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.method_steps import discriminator_losses
from support.step_profiler import Profiler
from torch import Tensor

from i2i.errors import UsageError
from i2i.methods.losses import GANLoss
from i2i.methods.pix2pix import Pix2Pix, Pix2PixConfig

TINY = {"crop_size": 64, "ngf": 3, "ndf": 4, "generator": "unet_64", "discriminator": "n_layers", "n_layers_d": 2}


def images(seed: int = 0, count: int = 2, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 64, 64, generator=generator).to(dtype) * 2 - 1 for _ in range(2)]


def build(**options) -> Pix2Pix:
    """A model in float64, with weights ten times the published ones: then all losses and gradients are of order 1."""
    model = Pix2Pix(Pix2PixConfig(**TINY | {"init_gain": 0.2} | options))
    for net in model.networks.values():
        net.double()
    return model


def published(model: Pix2Pix, a: Tensor, b: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """(losses, gradients of D, gradients of G with respect to a D that has made its first step)."""
    gan, g, d = GANLoss(model.config.gan_mode), copy.deepcopy(model.G), copy.deepcopy(model.D)
    fake = g(a)
    rng = torch.Generator().manual_seed(model.config.seed)
    losses = discriminator_losses(gan, d, torch.cat([a, b], 1), torch.cat([a, fake.detach()], 1), rng)
    of_d = torch.autograd.grad(sum(losses.values()) / 2, list(d.parameters()), allow_unused=True)
    for p, gradient in zip(d.parameters(), of_d, strict=True):
        p.grad = gradient
    torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999), foreach=False).step()
    losses["G_GAN"] = gan.for_generator(d(torch.cat([a, fake], 1)))
    losses["G_L1"] = model.config.lambda_l1 * F.l1_loss(fake, b)
    of_g = torch.autograd.grad(losses["G_GAN"] + losses["G_L1"], list(g.parameters()))
    return losses, list(of_d), list(of_g)


VARIANTS = {
    "published": {},
    "no L1": {"lambda_l1": 0.0},
    "lsgan": {"gan_mode": "lsgan"},
    "wgangp": {"gan_mode": "wgangp", "norm": "instance"},
    "wgangp, batch norm": {"gan_mode": "wgangp"},
    "no dropout, instance norm": {"dropout": False, "norm": "instance"},
    "resnet": {"generator": "resnet_4blocks"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_gradients_and_update_are_the_published_ones(variant):
    model = build(**VARIANTS[variant])
    a, b = images()
    torch.manual_seed(5)  # one draw of dropout's masks for both
    losses, of_d, of_g = published(model, a, b)
    before = {name: [p.detach().clone() for p in net.parameters()] for name, net in model.networks.items()}
    torch.manual_seed(5)
    got = model.step(a, b)

    assert set(got) == set(losses) and not any(loss.requires_grad for loss in got.values())
    # float64, another order of sums
    torch.testing.assert_close(got, {name: losses[name].detach() for name in got}, rtol=1e-9, atol=1e-12)
    for name, wanted in (("D", of_d), ("G", of_g)):
        parameters = list(model.networks[name].parameters())
        wanted = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, wanted, strict=True)]
        given = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        assert max(float(g.abs().max()) for g in wanted) > 1e-2  # something to compare
        torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-10)
        # Adam's first step is lr * g / (|g| + eps), whatever the betas.
        moved = [p - 2e-4 * g / (g.abs() + 1e-8) for p, g in zip(before[name], wanted, strict=True)]
        torch.testing.assert_close([p.detach() for p in parameters], moved, rtol=0, atol=1e-6)


def test_the_discriminator_sees_the_pair_and_no_gradient_of_the_generators_step():
    model = build()
    update, order = model.update, []

    def record(name):
        order.append(name)
        if name == "D":
            record.gradients = [p.grad.clone() for p in model.D.parameters()]
        update(name)

    model.update = record
    model.step(*images())
    assert order == ["D", "G"]
    assert all(torch.equal(p.grad, g) for p, g in zip(model.D.parameters(), record.gradients, strict=True))
    assert all(p.requires_grad for p in model.D.parameters())
    assert model.D.model[0].in_channels == 6


def test_translation_has_dropout_and_batch_statistics_and_is_a_function_of_the_image():
    model = Pix2Pix(Pix2PixConfig(**TINY, seed=3))
    a = images(count=2, dtype=torch.float32)[0]
    translated = model.translate(a)
    assert torch.equal(model.translate(a), translated)
    assert torch.equal(model.translate(a[1:]), translated[1:])  # whatever else is in the batch
    with torch.no_grad():
        for image, wanted in zip(a.split(1), translated.split(1)):
            torch.manual_seed(3)
            assert torch.equal(model.G(image), wanted)  # the network as in training
        assert not torch.allclose(model.G(a[:1]), translated[:1], atol=1e-3)  # with other masks: something else


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_looking_at_pictures_leaves_no_trace_in_the_run(ema):
    models = [Pix2Pix(Pix2PixConfig(**TINY, ema=ema)) for _ in range(2)]
    for model in models:
        torch.manual_seed(0)
        for number in range(2):
            if model is models[1]:
                assert list(model.visuals(*images(9, dtype=torch.float32))) == ["real_A", "fake_B", "real_B"]
            model.step(*images(number, dtype=torch.float32))
    for name, net in models[0].networks.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, models[1].networks[name].state_dict()[key]), key


def gradients(precision: str) -> dict[str, Tensor]:
    """Of one step, all those of a network as one vector."""
    model = Pix2Pix(Pix2PixConfig(**TINY | {"precision": precision, "init_gain": 0.2, "dropout": False}))
    model.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=precision == "float16")
    losses = model.step(*images(dtype=torch.float32))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.dtype == p.grad.dtype == torch.float32 for net in model.networks.values() for p in net.parameters())
    return {name: torch.cat([p.grad.flatten() for p in net.parameters()]) for name, net in model.networks.items()}


@pytest.mark.parametrize("precision, alike", [("bfloat16", 0.9), ("float16", 0.98)])
def test_half_precision_goes_the_same_way(precision, alike):
    exact, half = gradients("float32"), gradients(precision)
    for name in exact:
        assert float(F.cosine_similarity(exact[name], half[name], dim=0)) > alike, name
        assert float(half[name].norm() / exact[name].norm()) == pytest.approx(1, abs=0.05), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_no_layout_copy_in_a_step(precision, norm, form):
    """No map or weight leaves the memory format of the run between the images and the updated parameters."""
    model = Pix2Pix(Pix2PixConfig(**TINY | {"ndf": 5, "precision": precision, "norm": norm}))
    given = [x.contiguous(memory_format=form) for x in images(dtype=torch.float32)]
    with Profiler() as profiler:
        model.step(*given)
    assert profiler.operators > 300 and profiler.maps > 100
    assert profiler.reordered == [] and profiler.mostly(form)


def test_published_defaults():
    config = Pix2PixConfig()
    model = Pix2Pix(config)
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in model.networks.items()}
    assert sizes == {"G": 54_413_955, "D": 2_768_705}
    assert (config.dataset_mode, config.n_epochs, config.n_epochs_decay) == ("aligned", 100, 100)


def test_one_channel_to_two():
    """The published colorization model: lightness in, two colour channels out."""
    model = Pix2Pix(Pix2PixConfig(**TINY, input_nc=1, output_nc=2))
    a, b = images(dtype=torch.float32)
    assert all(torch.isfinite(loss) for loss in model.step(a[:, :1], b[:, :2]).values())
    assert model.translate(a[:, :1]).shape == (2, 2, 64, 64)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lambda_l1": -1}, "lambda_l1 must be 0 or more, got -1"),
        ({"generator": "unet_256"}, "crop_size must be a multiple of 256 for unet_256, at least 32, got 64"),
        ({"generator": "stylegan2"}, "generator must be a resnet or a unet, got stylegan2"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Pix2PixConfig(**TINY | options)


def test_without_crops_the_crop_size_is_free():
    assert Pix2PixConfig(**TINY | {"preprocess": "none", "crop_size": 50}).crop_size == 50
