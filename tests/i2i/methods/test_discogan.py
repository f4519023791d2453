"""DiscoGAN against what the published networks returned, and its losses against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from support.method_steps import assert_gradients, changed, in_float64, record_gradients, resumed, state

from i2i.errors import UsageError
from i2i.inference import weights
from i2i.methods.discogan import DiscoGAN, DiscoGANConfig
from i2i.networks.discogan import DiscoGANDiscriminator, DiscoGANGenerator

# float32 on both sides; measured: 1.3e-7 on the generator's outputs in (0, 1), 1e-7 on means of features.
TOLERANCE = 1e-6


def as_input(x: torch.Tensor) -> torch.Tensor:
    """What to give to a network here for the published one to see `x`."""
    return 2 * x.flip(1) - 1


@pytest.mark.parametrize("name", ["plain", "extra"])
@torch.no_grad()
def test_generator_is_the_published_one(name):
    wanted = golden.load(f"discogan_gen_{name}")
    net = DiscoGANGenerator(extra_layers=name == "extra").eval()
    assert golden.fill(net) == wanted["keys"].tolist()
    output = net(as_input(golden.image("x", tuple(wanted["input_shape"]))))
    found = (output.flip(1) + 1) / 2
    torch.testing.assert_close(found, torch.from_numpy(wanted["output"]), atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_discriminator_is_the_published_one():
    wanted = golden.load("discogan_dis")
    net = DiscoGANDiscriminator().eval()
    assert golden.fill(net) == wanted["keys"].tolist()
    scores, features = net(as_input(golden.image("x", tuple(wanted["input_shape"]))))
    torch.testing.assert_close(scores.sigmoid(), torch.from_numpy(wanted["output"]), atol=TOLERANCE, rtol=0)
    for i, feature in enumerate(features):
        wanted_mean = torch.from_numpy(wanted[f"feat_mean_{i}"])
        torch.testing.assert_close(feature.mean((2, 3)), wanted_mean, atol=TOLERANCE, rtol=0)


TINY = {"ngf": 2, "ndf": 2, "batch_size": 3}


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(golden.image(name, (3, 3, 64, 64)).to(dtype) for name in ("x", "y"))


def test_published_defaults():
    config = DiscoGANConfig()
    assert (config.starting_rate, config.default_rate, config.gan_curriculum) == (0.01, 0.5, 10_000)
    assert (config.update_interval, config.batch_size, config.weight_decay) == (3, 64, 1e-5)
    model = DiscoGAN(DiscoGANConfig(**TINY))
    groups = [group for optimizer in model.optimizers.values() for group in optimizer.param_groups]
    assert {(g["lr"], g["betas"], g["weight_decay"]) for g in groups} == {(2e-4, (0.5, 0.999), 1e-5)}


def cross_entropy(scores: torch.Tensor, target: float) -> torch.Tensor:
    return F.binary_cross_entropy(scores.sigmoid(), torch.full_like(scores, target))


def matching(wanted: list[torch.Tensor], features: list[torch.Tensor]) -> torch.Tensor:
    return sum(((a.mean(0) - b.mean(0)) ** 2).mean() for a, b in zip(wanted, features, strict=True))


@pytest.mark.parametrize("iteration", [0, 1, 10_000])
def test_losses_and_gradients_are_those_of_the_formulas(iteration):
    """0: D's turn; 1: the generators' with hardly any reconstruction; 10,000: with half of it."""
    model = in_float64(DiscoGAN(DiscoGANConfig(**TINY)))
    model.iteration = iteration
    gradients = record_gradients(model)
    a, b = batch()
    row = model.step(a, b)
    G_A, G_B, D_A, D_B = (model.networks[name] for name in ("G_A", "G_B", "D_A", "D_B"))
    fake_b, fake_a = G_A(a), G_B(b)
    if iteration == 0:
        wanted = {
            "D_A": 0.5 * (cross_entropy(D_A(b)[0], 1) + cross_entropy(D_A(fake_b)[0], 0)),
            "D_B": 0.5 * (cross_entropy(D_B(a)[0], 1) + cross_entropy(D_B(fake_a)[0], 0)),
        }
        assert list(gradients) == ["D"]
        assert_gradients(gradients["D"], wanted["D_A"] + wanted["D_B"], D_A, D_B)
    else:
        wanted = {
            "G_A": cross_entropy(D_A(fake_b)[0], 1),
            "FM_A": matching(D_A(b)[1], D_A(fake_b)[1]),
            "rec_A": (((G_B(fake_b) + 1) / 2 - (a + 1) / 2) ** 2).mean(),  # in [0, 1]
            "G_B": cross_entropy(D_B(fake_a)[0], 1),
            "FM_B": matching(D_B(a)[1], D_B(fake_a)[1]),
            "rec_B": (((G_A(fake_a) + 1) / 2 - (b + 1) / 2) ** 2).mean(),
        }
        rate = 0.01 if iteration == 1 else 0.5
        loss = sum(
            (1 - rate) * (0.1 * wanted[f"G_{side}"] + 0.9 * wanted[f"FM_{side}"]) + rate * wanted[f"rec_{side}"]
            for side in "AB"
        )
        assert list(gradients) == ["G"]
        assert_gradients(gradients["G"], loss, G_A, G_B)
    for name, loss in wanted.items():
        torch.testing.assert_close(row[name], loss.detach(), atol=1e-12, rtol=1e-12, msg=name)


def test_every_third_step_is_the_discriminators_and_a_resumed_run_goes_on_exactly(tmp_path):
    models = [DiscoGAN(DiscoGANConfig(**TINY, gan_curriculum=3))]
    given = batch(torch.float32)
    turns = []
    for step in range(5):
        before = state(models[0])
        rows = [model.step(*given) for model in models]
        turns.append("".join(sorted({name[0] for name in changed(models[0], before)})))
        if step == 1:
            models.append(resumed(models[0], tmp_path / "checkpoint.pt"))
    assert turns == ["D", "G", "G", "D", "G"]
    assert tuple(rows[0]) == DiscoGAN.losses and all(rows[0].values()) and rows[0] == rows[1]
    assert all(p.requires_grad for net in models[0].networks.values() for p in net.parameters())
    torch.testing.assert_close(*map(state, models), atol=0, rtol=0)


def test_low_precision_trains():
    model = DiscoGAN(DiscoGANConfig(**TINY, precision="bfloat16"))
    before = state(model)
    rows = [model.step(*batch(torch.float32)) for _ in range(2)]
    assert changed(model, before) == {"G_A", "G_B", "D_A", "D_B"}
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in rows[-1].values())
    columns = model.visuals(*batch(torch.float32))
    assert list(columns) == ["real_A", "fake_B", "rec_A", "real_B", "fake_A", "rec_B"]
    assert all(column.shape == (3, 3, 64, 64) and column.dtype == torch.float32 for column in columns.values())


def test_configurations_that_make_no_sense_are_refused():
    for options, message in (
        ({"crop_size": 128, "load_size": 128}, "crop_size must be 64, which the discriminator is made for, got 128"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"default_rate": 2}, r"default_rate must be in \[0, 1\], got 2"),
    ):
        with pytest.raises(UsageError, match=message):
            DiscoGANConfig(**options)
    model = DiscoGAN(DiscoGANConfig(ngf=2, ndf=2))
    with pytest.raises(UsageError, match="preprocess must bring images to 64 x 64 pixels for DiscoGAN, got 100 x 72"):
        model.step(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 72, 100))


@pytest.mark.parametrize(
    ("net", "sentence"),
    [
        (DiscoGANGenerator(conv_dim=4), "DiscoGAN generator, width 4, 3 channels"),
        (DiscoGANGenerator(1, extra_layers=True, conv_dim=4), "DiscoGAN generator, extra layers, width 4, 1 channels"),
        (DiscoGANDiscriminator(conv_dim=4), "DiscoGAN discriminator, width 4, 3 channels"),
    ],
)
def test_weights_are_recognised(tmp_path, net, sentence):
    weights.save_published(tmp_path, "latest", {"G_A": net})
    again = weights.load(tmp_path / "latest_net_G_A.pth")
    assert again.recognised == sentence
    torch.testing.assert_close(again.state_dict(), net.state_dict(), atol=0, rtol=0)
