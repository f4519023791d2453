"""SinCUT's step against the published losses, written plainly, in float64."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, softplus

from i2i.errors import UsageError
from i2i.methods import SinCUT

TINY = {"ngf": 2, "ndf": 2, "batch_size": 3, "lambda_r1": 3.0, "lambda_identity": 0.5}


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 3, 64, 64, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2)]


def published(nets, ids, real_a, real_b):
    """(losses of D, losses of G) without updates: every gradient of both is of one state of the networks."""
    g, d, f = nets["G"], nets["D"], nets["F"]
    fake_b, idt_b = g(torch.cat([real_a, real_b])).chunk(2)

    real_b = real_b.clone().requires_grad_()
    scores = d(real_b)
    (slope,) = torch.autograd.grad(scores.sum(), real_b, create_graph=True)
    of_d = {"D_real": softplus(-scores).mean(), "D_fake": softplus(d(fake_b.detach())).mean()}
    of_d["D_R1"] = 3.0 / 2 * slope.square().flatten(1).sum(1).mean()

    of_g = {"G_GAN": softplus(-d(fake_b)).mean(), "idt": 0.5 * (idt_b - real_b.detach()).abs().mean()}
    for name, source, target in (("NCE", real_a, fake_b), ("NCE_Y", real_b.detach(), idt_b)):
        total = 0
        for layer, (q, k) in enumerate(
            zip(*(g(x, (0, 2, 4), encode_only=True) for x in (target, source)), strict=True)
        ):
            q, k = (f.get_submodule(f"mlp_{layer}")(x.flatten(2)[:, :, int(ids[name][layer])]) for x in (q, k))
            q, k = (x / (x.norm(dim=1, keepdim=True) + 1e-7) for x in (q, k.detach()))
            logits = torch.cat([(q * k).sum(1, keepdim=True), (q @ k.T).fill_diagonal_(-10)], 1) / 0.07
            assert logits.shape == (3, 4)  # one patch of each image; the negatives are all images'
            total = total + 4.0 * cross_entropy(logits, torch.zeros(3, dtype=torch.long))
        of_g[name] = total / 3
    of_g["G"] = of_g["G_GAN"] + of_g["idt"] + (of_g["NCE"] + of_g["NCE_Y"]) / 2
    return of_d, of_g


def test_step_is_the_published_one():
    model = SinCUT(SinCUT.Config(**TINY))
    nets = {name: copy.deepcopy(net.double()) for name, net in model.networks.items()}
    model.optimizers["D"].param_groups[0]["lr"] = 0  # so that G's losses are of the same D in both
    draws = torch.Generator()
    draws.set_state(model.rngs["step"].get_state())
    ids = {name: [torch.randperm(side**2, generator=draws)[0] for side in (64, 32, 32)] for name in ("NCE", "NCE_Y")}
    torch.manual_seed(0)  # of StyleGAN2's noise
    of_d, of_g = published(nets, ids, *images())
    (0.5 * (of_d["D_real"] + of_d["D_fake"]) + of_d["D_R1"]).backward(inputs=list(nets["D"].parameters()))
    of_g["G"].backward(inputs=[*nets["G"].parameters(), *nets["F"].parameters()])
    torch.manual_seed(0)
    found = model.step(*images())
    wanted = of_d | of_g
    assert found.keys() == wanted.keys()
    for name, loss in wanted.items():
        torch.testing.assert_close(found[name], loss.detach(), rtol=1e-9, atol=0, msg=lambda m: f"{name}: {m}")
    for name, net in nets.items():
        scale = max(float(p.grad.abs().max()) for p in net.parameters())
        for (key, p), q in zip(net.named_parameters(), model.networks[name].parameters(), strict=True):
            torch.testing.assert_close(
                q.grad, p.grad, rtol=1e-7, atol=1e-10 * scale, msg=lambda m: f"{name} {key}: {m}"
            )


def test_defaults_are_the_published_ones():
    model = SinCUT(SinCUT.Config())
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in model.networks.items()}
    assert counts["G"] == 3_068_404 and counts["D"] == 5_885_473
    assert model.optimizers["G"].defaults["betas"] == (0, 0.99) and model.optimizers["G"].defaults["lr"] == 2e-3


@pytest.mark.parametrize("options", [{"nce_idt": False}, {"lambda_nce": 0}])
def test_identity_needs_b_through_g(options):
    with pytest.raises(UsageError, match="lambda_identity must be 0 without"):
        SinCUT.Config(**options)
    SinCUT.Config(**options, lambda_identity=0)


def test_identity_needs_images_as_they_are():
    with pytest.raises(UsageError, match="flip_equivariance must be false with lambda_identity"):
        SinCUT.Config(flip_equivariance=True)
