"""CUT's contrastive losses against their formulas in float64, and the combinations of options."""

import pytest
import torch

from i2i.errors import UsageError
from i2i.methods import CUT, SinCUT
from i2i.methods.contrast import contrastive_loss
from i2i.methods.cut import CUTConfig

TINY = {"crop_size": 32, "ngf": 4, "ndf": 4, "generator": "resnet_4blocks", "num_patches": 8}
T = 0.07


def features(seed: int, width: int = 6) -> list[torch.Tensor]:
    """Rows (B, P, C) of two layers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 8, width, generator=generator, dtype=torch.float64) for _ in range(2)]


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-7)


def loss_of_rows(q, negatives, positive, *, log_weight=0.0, weight=1.0, decoupled=False, own_key=True):
    """Mean over the rows of one problem: log of what is summed over the negatives, and the positive, minus the latter.
    With `own_key`, negative i of row i is the positive itself and does not count."""
    logits = weight * (q @ negatives.T) / T + log_weight
    if own_key:
        logits = logits.masked_fill(torch.eye(len(q), dtype=torch.bool), -torch.inf)
    positive = (q * positive).sum(1) / T
    if not decoupled:
        logits = torch.cat([positive[:, None], logits], 1)
    return (logits.logsumexp(1) - positive).mean()


def transport(q, k, eps):
    """Plan of 50 Sinkhorn iterations between the patches of an image; unlike pairs attract."""
    kernel = ((1 - q @ k.T) / eps).masked_fill(torch.eye(len(q), dtype=torch.bool), -10 / eps).exp()
    u = torch.ones(len(q), dtype=torch.float64)
    for _ in range(50):
        v = 1 / (kernel.T @ u)
        u = 1 / (kernel @ v)
    return u[:, None] * kernel * v


def relations(x):
    return torch.softmax(x @ x.T, 0)


def divergence(p, q):
    middle = (p + q) / 2
    return 0.5 * ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum())


def nce(q, k):
    return loss_of_rows(q, k, k)


def dcl(q, k):
    return loss_of_rows(q, k, k, decoupled=True)


def monce(q, k):
    weight = transport(q, k, 0.5) * (len(q) - 1) + 1e-8
    return loss_of_rows(q, k, k, log_weight=weight.log())


def hdce(q, k):
    alike = torch.softmax((k @ k.T).masked_fill(torch.eye(len(k), dtype=torch.bool), -10) / 2.0, 1)
    weight = alike / alike.amax(1, keepdim=True)
    # lambda_nce = 3 multiplies the whole below, but not the relation loss of weight 0.25
    src = divergence(relations(q), relations(k))
    return loss_of_rows(q, k, k, weight=weight, decoupled=True) + 0.25 * src / 3


@pytest.mark.parametrize("formula", [nce, dcl, monce, hdce])
def test_contrast_is_its_formula(formula):
    model = CUT(
        CUT.Config(**TINY, lambda_nce=3, contrast=formula.__name__, monce_eps=0.5, hdce_gamma=2, lambda_src=0.25)
    )
    queries, keys = features(0), features(1)
    found = contrastive_loss(model.config, [q.requires_grad_() for q in queries], keys)
    problems = [(unit(q[b]), unit(k[b])) for q, k in zip(queries, keys, strict=True) for b in range(2)]
    wanted = 3 * sum(formula(q, k) for q, k in problems) / len(problems)
    # -10 / T on the diagonal of MoNCE's kernel is e^-20 here; the rest is the same arithmetic in another order
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(loss, queries) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("contrast", ["nce", "dcl"])
def test_negatives_of_the_minibatch(contrast):
    model = CUT(CUT.Config(**TINY, contrast=contrast, negatives="minibatch"))
    queries, keys = features(0), features(1)
    pairs = [(unit(q.flatten(0, 1)), unit(k.flatten(0, 1))) for q, k in zip(queries, keys, strict=True)]
    wanted = sum(loss_of_rows(q, k, k, decoupled=contrast == "dcl") for q, k in pairs) / 2
    torch.testing.assert_close(contrastive_loss(model.config, queries, keys), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("contrast", ["nce", "dcl"])
def test_negatives_from_a_bank(contrast):
    model = CUT(CUT.Config(**TINY, contrast=contrast, negatives="external", queue_size=8))
    queries, keys = features(0), features(1)
    bank = torch.stack([layer[0] for layer in features(2)])
    options = {"decoupled": contrast == "dcl", "own_key": False}
    layers = [
        (unit(q.flatten(0, 1)), unit(n), unit(k.flatten(0, 1))) for q, n, k in zip(queries, bank, keys, strict=True)
    ]
    wanted = sum(loss_of_rows(*layer, **options) for layer in layers) / 2
    torch.testing.assert_close(contrastive_loss(model.config, queries, keys, bank), wanted, rtol=1e-12, atol=0)


def step(config, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    model = CUT(config)
    before = {name: [p.clone() for p in net.parameters()] for name, net in model.networks.items()}
    losses = model.step(*(torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)))
    assert all(loss.isfinite() for loss in losses.values())
    changed = [
        not torch.equal(old, new)
        for name, net in before.items()
        for old, new in zip(net, model.networks[name].parameters())
    ]
    assert all(changed)
    return model, losses


@pytest.mark.parametrize("name", ["sample", "reshape"])
def test_feature_networks_without_weights_train(name):
    model, losses = step(CUT.Config(**TINY, feature_network=name, precision="bfloat16"))
    assert set(model.optimizers) == {"G", "D"} and losses["NCE"] > 0


def test_without_contrast_there_is_no_feature_network():
    model, losses = step(CUT.Config(**TINY, lambda_nce=0))
    assert set(model.networks) == {"G", "D"}
    assert set(losses) == {"G_GAN", "D_real", "D_fake", "G"} and losses["G"] == losses["G_GAN"]


def test_batch_norm_and_dropout_train():
    """The keys come from another pass then (see CUT.translate_and_sample)."""
    model, _ = step(CUT.Config(**TINY, norm="batch", dropout=True))
    kept = {name: buffer.clone() for name, buffer in model.G.named_buffers() if "running" in name}
    model.translate(torch.zeros(1, 3, 32, 32))
    assert kept and all(torch.equal(kept[name], buffer) for name, buffer in model.G.named_buffers() if name in kept)


@pytest.mark.parametrize("options", [{}, {"negatives": "external", "queue_size": 32}])
def test_images_of_different_sizes(options):
    """With B of the size of A the two go through G together: the same losses as one after the other."""
    small, large = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 40, 36)
    model = CUT(CUT.Config(**TINY, **options))
    losses = model.step(small, large)
    assert losses["NCE_Y"] > 0 and all(p.grad.isfinite().all() for p in model.G.parameters())
    of_a = CUT(CUT.Config(**TINY, **options)).step(small, torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(losses["NCE"], of_a["NCE"], rtol=1e-4, atol=0)


def test_wgangp_has_its_penalty():
    model = CUT(CUT.Config(**TINY, gan_mode="wgangp"))
    assert model.step(torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))["D_GP"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "unet_256"}, "generator must be a resnet or stylegan2 .*, got unet_256"),
        ({"output_nc": 1}, r"output_nc must be input_nc \(3\): the encoder reads both domains, got 1"),
        ({"contrast": "monce", "negatives": "minibatch"}, "negatives must be image with contrast=monce"),
        ({"contrast": "hdce", "negatives": "external"}, "negatives must be image with contrast=hdce"),
        ({"feature_network": "sample", "negatives": "external"}, "feature_network must be mlp_sample with"),
        ({"negatives": "all"}, "negatives must be one of image, minibatch, external, got all"),
        ({"num_patches": 65}, r"num_patches must be at most 64, \(crop_size / 4\) squared, got 65"),
        ({"num_patches": 1}, "num_patches must be 2 or more: the others are the negatives, got 1"),
        ({"crop_size": 48, "discriminator": "stylegan2"}, "crop_size must be a power of two"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(UsageError, match=message):
        CUT.Config(**TINY | options)


def test_refused_layers():
    with pytest.raises(UsageError, match="nce_layers: .* ascending indices from 0 to"):
        CUT(CUT.Config(**TINY, nce_layers=(4, 0)))


def test_what_only_contrast_needs_is_asked_only_of_it():
    CUT.Config(**TINY, lambda_nce=0, output_nc=1)
    CUT.Config(**TINY | {"feature_network": "reshape", "num_patches": 1})
    with pytest.raises(UsageError, match="num_patches must be 2 or more"):
        SinCUT.Config(batch_size=1)


def test_the_scale_of_float16_settles():
    """It halves at every gradient out of range, from 65536, and no network is updated meanwhile. With the MLPs of F in
    float16, it fell to 0.125."""
    sizes = {"crop_size": 32, "ngf": 8, "ndf": 8, "generator": "resnet_5blocks", "num_patches": 32}
    model = CUT(CUTConfig(**sizes, precision="float16"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        model.step(*(torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)))
        model.after_step()
    assert model.scaler.get_scale() >= 64  # 512 was measured
