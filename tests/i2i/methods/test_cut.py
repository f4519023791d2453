"""CUT: combinations of options, sizes and precisions."""

import pytest
import torch
from support.method_steps import gradient

from i2i.errors import UsageError
from i2i.methods import CUT, SinCUT
from i2i.methods.cut import CUTConfig

TINY = {"crop_size": 32, "ngf": 4, "ndf": 4, "generator": "resnet_4blocks", "num_patches": 8}


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
        if old.dim() > 1  # biases in front of a norm have no part
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
    assert losses["NCE_Y"] > 0 and all(gradient(p).isfinite().all() for p in model.G.parameters())
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
    assert model.scaler.get_scale() >= 64  # 512 was measured


@pytest.mark.parametrize("options", [{"dropout": True}, {"generator": "stylegan2", "nce_layers": (0, 2, 9)}])
def test_sizes_of_maps_are_those_of_the_generator_and_draw_nothing(options):
    """Dropout and noise come from torch's own generator, of which a run's bits hang."""
    model = CUT(CUT.Config(**TINY | options))
    before = torch.get_rng_state()
    sizes = model.tap_sizes(40, 36)
    assert torch.equal(torch.get_rng_state(), before)
    maps = model.G(torch.zeros(1, 3, 40, 36), model.config.nce_layers, encode_only=True)
    assert sizes == [tuple(x.shape[2:]) for x in maps]
