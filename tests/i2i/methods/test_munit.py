"""One step of MUNIT: its losses and gradients against the published order of work, and what it saves and survives."""

import copy

import pytest
import torch
import torch.nn.functional as F

from i2i import distributed
from i2i.errors import UsageError
from i2i.files import CHECKPOINT
from i2i.methods.munit import MUNIT, MUNITConfig
from i2i.networks import vgg
from i2i.training import checkpoint
from i2i.training.schedule import Schedule

TINY = {"crop_size": 32, "load_size": 32, "ngf": 4, "ndf": 4, "n_res": 1, "mlp_dim": 16, "num_scales": 2}


def images(n: int = 1, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(n, 3, 32, 32, generator=generator).to(dtype) * 2 - 1 for _ in range(2))


@pytest.fixture
def vgg_file(monkeypatch, tmp_path) -> str:
    monkeypatch.setattr(vgg, "WIDTHS", ((4, 4), (4, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4)))
    torch.manual_seed(1)
    torch.save(vgg.Vgg16().state_dict(), tmp_path / "vgg.pt")
    return str(tmp_path / "vgg.pt")


def published_losses(before: MUNIT, after: MUNIT, real_a, real_b) -> dict[str, torch.Tensor]:
    """All losses in one graph, as the published trainer forms them; `after` has the discriminators' update."""
    styles = torch.Generator().manual_seed(before.config.seed)

    def sample():
        return torch.randn(len(real_a), before.config.style_dim, 1, 1, generator=styles).double()

    a, b, losses = before.gen_a, before.gen_b, {}
    s_a, s_b = sample(), sample()
    for here, dis, fake, real in (
        ("a", before.dis_a, a.decode(b.encode_content(real_b), s_a), real_a),
        ("b", before.dis_b, b.decode(a.encode_content(real_a), s_b), real_b),
    ):
        pairs = zip(dis(fake.detach()), dis(real), strict=True)
        losses[f"dis_{here}"] = sum(f.square().mean() + (r - 1).square().mean() for f, r in pairs)
    s_a, s_b = sample(), sample()
    c_a, c_b = a.encode_content(real_a), b.encode_content(real_b)
    own_a, own_b = a.encode_style(real_a), b.encode_style(real_b)
    x_ba, x_ab = a.decode(c_b, s_a), b.decode(c_a, s_b)
    c_b_again, s_a_again = a.encode(x_ba)
    c_a_again, s_b_again = b.encode(x_ab)
    losses |= {
        "gen_recon_x_a": F.l1_loss(a.decode(c_a, own_a), real_a),
        "gen_recon_x_b": F.l1_loss(b.decode(c_b, own_b), real_b),
        "gen_recon_s_a": F.l1_loss(s_a_again, s_a),
        "gen_recon_s_b": F.l1_loss(s_b_again, s_b),
        "gen_recon_c_a": F.l1_loss(c_a_again, c_a),
        "gen_recon_c_b": F.l1_loss(c_b_again, c_b),
        "gen_cycrecon_x_a": F.l1_loss(a.decode(c_a_again, own_a), real_a),
        "gen_cycrecon_x_b": F.l1_loss(b.decode(c_b_again, own_b), real_b),
        "gen_adv_a": sum((score - 1).square().mean() for score in after.dis_a(x_ba)),
        "gen_adv_b": sum((score - 1).square().mean() for score in after.dis_b(x_ab)),
        "gen_vgg_a": F.mse_loss(F.instance_norm(before.vgg(x_ba)), F.instance_norm(before.vgg(real_b))),
        "gen_vgg_b": F.mse_loss(F.instance_norm(before.vgg(x_ab)), F.instance_norm(before.vgg(real_a))),
    }
    weights = {"gen_recon_x": 10, "gen_cycrecon_x": 7, "gen_vgg": 3, "gen_recon_s": 0.5, "gen_recon_c": 2, "gen_adv": 5}
    return losses | {"G": sum(weights[name[:-2]] * loss for name, loss in losses.items() if name[:-2] in weights)}


@pytest.mark.parametrize("batch", [1, 2])
def test_step_is_the_published_one(batch, vgg_file, monkeypatch):
    """Contents encoded once, batched decoders, gradients gathered on the way: the losses and gradients of the plain
    sum, in float64."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)  # losses stay in float64
    draw = MUNIT.draw_styles
    monkeypatch.setattr(MUNIT, "draw_styles", lambda self, n: {x: s.double() for x, s in draw(self, n).items()})
    weights = {"recon_x_cyc_w": 7, "vgg_w": 3, "recon_s_w": 0.5, "recon_c_w": 2, "gan_w": 5}
    model = MUNIT(MUNITConfig(**TINY, **weights, vgg_weights=vgg_file))
    for net in (*model.networks.values(), model.vgg):
        net.double()
    before = copy.deepcopy(model)
    real = images(batch, torch.float64)
    found = model.step(*real)
    wanted = published_losses(before, model, *real)
    assert found.keys() == wanted.keys()
    for name, loss in found.items():
        assert float(loss) == pytest.approx(wanted[name].item(), rel=1e-10), name
    totals = {"gen": wanted["G"], "dis": 5 * (wanted["dis_a"] + wanted["dis_b"])}
    for kind, total in totals.items():
        for domain in "ab":
            name = f"{kind}_{domain}"
            parameters = dict(before.networks[name].named_parameters())
            gradients = torch.autograd.grad(total, parameters.values(), allow_unused=True, retain_graph=True)
            for key, gradient in zip(parameters, gradients, strict=True):
                got = model.networks[name].get_parameter(key).grad
                assert (got is None) == (gradient is None), f"{name} {key}"
                if got is not None:
                    torch.testing.assert_close(got, gradient, rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")


def test_work_of_a_step():
    """The savings: one content encoding for both updates, no style encoder and no generator graph for the first, no
    gradients of discriminator weights in the second."""
    model = MUNIT(MUNITConfig(**TINY))
    calls: list[tuple[str, bool]] = []
    parts = {
        "content": model.gen_a.enc_content,
        "style": model.gen_a.enc_style,
        "decoder": model.gen_a.dec,
        "discriminator": model.dis_a,
    }
    for name, part in parts.items():
        part.register_forward_hook(lambda net, given, out, n=name: calls.append((n, torch.is_grad_enabled())))
    model.step(*images())
    assert sorted(calls) == [
        ("content", True),  # of a photograph ...
        ("content", True),  # ... and of a translation
        ("decoder", False),  # for the discriminator
        ("decoder", True),
        ("discriminator", True),  # photograph and translation in one
        ("discriminator", True),
        ("style", True),
        ("style", True),
    ]
    gradients = [parameter.grad.clone() for parameter in model.dis_a.parameters()]
    model.step(*images())  # the same pictures: after the first update, other gradients
    assert not all(torch.equal(p.grad, old) for p, old in zip(model.dis_a.parameters(), gradients, strict=True))


def test_bfloat16_keeps_weights_and_losses_in_float32():
    """Under autocast the published adaptive norm raises an error."""
    exact = MUNIT(MUNITConfig(**TINY, recon_x_cyc_w=10)).step(*images())
    model = MUNIT(MUNITConfig(**TINY, recon_x_cyc_w=10, precision="bfloat16"))
    for name, loss in model.step(*images()).items():
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(exact[name]), rel=0.02), name
    assert all(p.dtype == torch.float32 for net in model.networks.values() for p in net.parameters())
    assert model.translate(images()[0]).dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("texture", [0.0, 1e-6, 1e-3])
def test_nearly_constant_crops_leave_finite_weights(texture, precision, vgg_file):
    """White crops ended published runs with NaN (issues 35, 61 and 111 there)."""
    config = MUNITConfig(**TINY, recon_x_cyc_w=10, vgg_w=1, vgg_weights=vgg_file, precision=precision)
    model = MUNIT(config)
    white, noise = torch.ones(1, 3, 32, 32), images()
    for _ in range(3):
        losses = model.step(white - texture * noise[0], white - texture * noise[1])
        assert all(loss.isfinite() for loss in losses.values())
    for net in model.networks.values():
        assert all(p.isfinite().all() and (p.grad is None or p.grad.isfinite().all()) for p in net.parameters())


def test_initialisation_rates_and_decay_are_the_published_ones():
    model = MUNIT(MUNITConfig(**TINY | {"ngf": 16, "ndf": 16}, step_size=2))
    kaiming = model.gen_a.enc_content.model[1].conv  # 32 x 16 x 4 x 4
    assert float(kaiming.weight.detach().std()) == pytest.approx((2 / (16 * 16)) ** 0.5, rel=0.05)
    assert float(model.dis_a.cnns[0][1].conv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    gamma = model.gen_a.dec.model[2].norm.gamma.detach()
    assert 0 <= gamma.min() < 0.2 and 0.8 < gamma.max() < 1  # uniform, left as it was
    rates = []
    for _ in range(4):
        model.step(*images())
        rates += [{group["lr"] for o in model.optimizers.values() for group in o.param_groups}]
    assert rates == [{1e-4}, {5e-5}, {5e-5}, {2.5e-5}]  # counted up before the update
    assert {group["weight_decay"] for o in model.optimizers.values() for group in o.param_groups} == {1e-4}


def test_resumed_run_is_the_uninterrupted_one(tmp_path):
    config = MUNITConfig(**TINY, step_size=2, ema=0.9)
    model, resumed = MUNIT(config), MUNIT(config)
    model.step(*images())
    checkpoint.save(tmp_path / CHECKPOINT, model, Schedule(model.optimizers, config), 1)
    checkpoint.restore(checkpoint.read(tmp_path), resumed, Schedule(resumed.optimizers, config))
    for _ in range(2):
        losses, again = model.step(*images()), resumed.step(*images())
        assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert resumed.optimizers["gen"].param_groups[0]["lr"] == model.optimizers["gen"].param_groups[0]["lr"] == 5e-5
    assert torch.equal(resumed.translate(images()[0]), model.translate(images()[0]))


def test_processes_draw_the_styles_of_one_larger_batch(monkeypatch):
    whole = MUNIT(MUNITConfig(**TINY)).draw_styles(4)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
        part = MUNIT(MUNITConfig(**TINY)).draw_styles(2)
        assert all(torch.equal(part[x], whole[x][2 * rank : 2 * rank + 2]) for x in "ab")


def test_translations_differ_by_style_and_pictures_show_it():
    model = MUNIT(MUNITConfig(**TINY, output_nc=1))
    real_a, real_b = images(2)[0], images(2)[1][:, :1]
    plain = model.translate(real_a)
    assert plain.shape == (2, 1, 32, 32)
    first, second = (model.visuals(real_a, real_b) for _ in range(2))
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["fake_B"], plain)
    assert not torch.allclose(first["fake_B, another style"], plain, atol=1e-3)
    assert first["fake_A"].shape == real_a.shape


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop_size": 30}, "crop_size must be a multiple of 4, at least 32 for 2 scales of 4 layers, got 30"),
        ({"num_scales": 3}, "crop_size must be a multiple of 4, at least 64 for 3 scales of 4 layers, got 32"),
        ({"vgg_w": 1}, "vgg_weights must be a file of VGG-16's Caffe weights when vgg_w is above 0"),
        ({"vgg_w": 1, "vgg_weights": "x", "input_nc": 1}, "vgg_w must be 0 unless both domains have 3 channels"),
        ({"gan_mode": "wgangp"}, "gan_mode must be one of lsgan, nsgan, got wgangp"),
        (
            {"lr_policy": "cosine"},
            "lr_policy must be left alone for MUNIT, whose learning rate goes by step_size",
        ),
        ({"n_epochs_decay": 5}, "n_epochs_decay must be 0 for MUNIT"),
        ({"gamma": 0}, "gamma must be in (0, 1], got 0.0"),
        ({"recon_c_w": -1}, "recon_c_w must be 0 or more, got -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError) as error:
        MUNITConfig(**TINY | options)
    assert message in str(error.value)


def test_missing_vgg_weights_are_named_before_training():
    with pytest.raises(UsageError, match="vgg_weights: nowhere.pt is not a file"):
        MUNIT(MUNITConfig(**TINY, vgg_w=1, vgg_weights="nowhere.pt"))


def test_images_of_two_sizes_are_refused():
    a, b = images()
    with pytest.raises(UsageError, match="one size for MUNIT, got 32 x 32 and 28 x 32"):
        MUNIT(MUNITConfig(**TINY)).step(a, b[..., :28])
