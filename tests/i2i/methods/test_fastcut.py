"""Whole steps of CUT and FastCUT against the published order of computation, written plainly, in float64."""

import copy

import pytest
import torch
from support.method_steps import gradient
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

from i2i.methods import CUT, FastCUT
from i2i.methods.cut import mirrored

LAYERS = (0, 4, 8, 12)
TINY = {"crop_size": 32, "ngf": 4, "ndf": 4, "generator": "resnet_4blocks", "nce_layers": LAYERS, "num_patches": 16}


def images(step: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(2))


def double(model):
    for net in model.networks.values():
        net.double()
    return model


class Published:
    """The published step on copies of a model's networks: everything in contiguous maps, every source encoded again,
    positive logit beside a matrix of logits whose diagonal is filled with -10."""

    def __init__(self, model):
        self.config = model.config
        self.nets = {
            name: copy.deepcopy(net).to(memory_format=torch.contiguous_format) for name, net in model.networks.items()
        }
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for name, net in self.nets.items()
            if list(net.parameters())
        }
        self.random = torch.Generator().manual_seed(self.config.seed)

    def step(self, real_a, real_b):
        """Returns the losses, and whether this step's images were mirrored."""
        config, g, d = self.config, self.nets["G"], self.nets["D"]
        flipped = config.flip_equivariance and float(torch.rand((), generator=self.random)) < 0.5
        real = torch.cat([real_a, real_b]) if config.nce_idt else real_a
        fake = g(real.flip(3) if flipped else real)
        fake_b, idt_b = fake[: len(real_a)], fake[len(real_a) :]

        losses = {"D_real": (d(real_b) - 1).square().mean(), "D_fake": d(fake_b.detach()).square().mean()}
        self.update(0.5 * (losses["D_real"] + losses["D_fake"]), "D")

        d.requires_grad_(False)
        losses["G_GAN"] = (d(fake_b) - 1).square().mean()
        losses["NCE"] = self.nce(real_a, fake_b, flipped)
        total = losses["NCE"]
        if config.nce_idt:
            losses["NCE_Y"] = self.nce(real_b, idt_b, flipped)
            total = 0.5 * (losses["NCE"] + losses["NCE_Y"])
        losses["G"] = losses["G_GAN"] + total
        self.update(losses["G"], *(name for name in self.optimizers if name != "D"))
        d.requires_grad_(True)
        return losses, flipped

    def update(self, loss, *names):
        for name in names:
            self.optimizers[name].zero_grad()
        loss.backward()
        for name in names:
            self.optimizers[name].step()

    def nce(self, source, target, flipped):
        g = self.nets["G"]
        queries = g(target, LAYERS, encode_only=True)
        if flipped:
            queries = [layer.flip(3) for layer in queries]
        keys = g(source, LAYERS, encode_only=True)
        total = 0
        for i, (q, k) in enumerate(zip(queries, keys, strict=True)):
            ids = torch.randperm(k[0, 0].numel(), generator=self.random)[:16] if self.draws else None
            total = total + patch_nce(self.rows(i, q, ids), self.rows(i, k, ids).detach()).mean()
        return self.config.lambda_nce * total / len(LAYERS)

    @property
    def draws(self):
        return self.config.feature_network != "reshape"

    def rows(self, layer, x, ids):
        """(N, C, H, W) -> (N, rows, width) of unit length."""
        x = x.flatten(2)[:, :, ids] if self.draws else adaptive_avg_pool2d(x, 4).flatten(2)
        x = x.transpose(1, 2)
        if self.config.feature_network == "mlp_sample":
            x = self.nets["F"].get_submodule(f"mlp_{layer}")(x)
        return x / (torch.linalg.vector_norm(x, dim=2, keepdim=True) + 1e-7)


def patch_nce(q, k):
    positive = (q * k).sum(2, keepdim=True)
    negative = q @ k.transpose(1, 2)
    negative = negative.masked_fill(torch.eye(q.shape[1], dtype=torch.bool), -10.0)
    logits = torch.cat([positive, negative], dim=2).flatten(0, 1) / 0.07
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (CUT, {}),
        (CUT, {"feature_network": "reshape", "antialias": False}),
        (FastCUT, {}),
        (FastCUT, {"nce_idt": True, "published_order": True}),
        (FastCUT, {"feature_network": "sample"}),
        (FastCUT, {"feature_network": "reshape"}),
    ],
)
def test_step_is_the_published_one(method, options):
    model = double(method(method.Config(**TINY | options, seed=7)))  # with which FastCUT mirrors the second step alone
    published = Published(model)
    seen = []
    for step in range(2):
        wanted, flipped = published.step(*images(step))
        found = model.step(*images(step))
        seen.append(flipped)
        assert found.keys() == wanted.keys()
        for name, loss in wanted.items():
            torch.testing.assert_close(found[name], loss.detach(), rtol=1e-9, atol=1e-12)
        for name, net in published.nets.items():
            # Biases in front of a norm have no gradient, or noise of 1e-17; everything else is larger than 1e-9 of the
            # largest. Weights changed by steps before this one are in it.
            scale = max((gradient(p).abs().max() for p in net.parameters()), default=0)
            for (key, p), q in zip(net.named_parameters(), model.networks[name].parameters(), strict=True):
                torch.testing.assert_close(
                    gradient(q), gradient(p), rtol=1e-7, atol=1e-10 * float(scale), msg=lambda m: f"{key}: {m}"
                )
    assert seen == [False, method is FastCUT]


def test_mirrored_positions():
    maps = torch.arange(5 * 7).view(1, 1, 5, 7)
    ids = torch.tensor([0, 6, 9, 34])
    (found,) = mirrored([ids], [(5, 7)])
    assert torch.equal(maps.flip(3).flatten()[found], maps.flatten()[ids])
    assert mirrored(None, []) is None


def test_fastcut_is_cut_with_other_defaults():
    config = FastCUT.Config()
    assert (config.lambda_nce, config.nce_idt, config.flip_equivariance) == (10.0, False, True)
    assert (config.n_epochs, config.n_epochs_decay) == (150, 50)
    model = FastCUT(FastCUT.Config(**TINY))
    assert set(model.visuals(*(x.float() for x in images(0)))) == {"real_A", "fake_B", "real_B"}
