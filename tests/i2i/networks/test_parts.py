"""U-Nets and blocks against plain torch in the published order; features for the contrastive loss; initialisation."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from torch import nn

from i2i.errors import UsageError
from i2i.networks import (
    PatchDiscriminator,
    PatchFeatureNetwork,
    ResnetGenerator,
    UnetGenerator,
    discriminator,
    feature_network,
    generator,
    init_weights,
)
from i2i.networks.norms import norm_layer

# ---- U-Net ----------------------------------------------------------------------------------------------------------


def plain_unet(state, x, norm, depth):
    """The published order of work: leaky ReLU in place, so that the skip has it too; ReLU on the concatenation."""

    def convolve(key, x, function=F.conv2d):
        return function(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride=2, padding=1)

    def normalise(key, x):
        if norm == "none":
            return x
        if norm == "instance":
            return F.instance_norm(x)
        return F.batch_norm(x, None, None, state[f"{key}.weight"], state[f"{key}.bias"], training=True)

    def level(key, x, left):
        skip = F.leaky_relu(x, 0.2)
        h = convolve(f"{key}.1", skip)
        if left == 1:
            h = normalise(f"{key}.4", convolve(f"{key}.3", h.relu(), F.conv_transpose2d))
        else:
            h = level(f"{key}.3.model", normalise(f"{key}.2", h), left - 1)
            h = normalise(f"{key}.6", convolve(f"{key}.5", h.relu(), F.conv_transpose2d))
        return torch.cat([skip, h], 1)

    h = level("model.model.1.model", convolve("model.model.0", x), depth - 1)
    return convolve("model.model.3", h.relu(), F.conv_transpose2d).tanh()


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_unet_computes_the_published_order(norm):
    net = UnetGenerator(2, 3, 4, 5, norm=norm).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = golden.wave((2, 2, 32, 64))
    wanted = plain_unet(dict(net.named_parameters()), x, norm, 5)
    torch.testing.assert_close(net(x), wanted, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad((y**3).sum(), net.parameters()) for y in (net(x), wanted)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)


def test_unet_refuses_sizes_it_cannot_halve():
    net = UnetGenerator(ngf=4, num_downs=5)
    with pytest.raises(UsageError, match="sides that are multiples of 32, got 64 x 48"):
        net(torch.zeros(1, 3, 64, 48))
    with pytest.raises(UsageError, match="num_downs must be at least 5, got 4"):
        UnetGenerator(num_downs=4)


# ---- norm and dropout -----------------------------------------------------------------------------------------------


def test_dropout_is_where_published_and_off_in_eval_mode():
    with torch.device("meta"):
        for name, count in {"unet_128": 2, "unet_256": 3, "resnet_6blocks": 6}.items():
            net = generator(name, ngf=4, dropout=True)
            assert sum(isinstance(module, nn.Dropout) for module in net.modules()) == count, name
    plain = ResnetGenerator(ngf=4, n_blocks=2).double()
    net = ResnetGenerator(ngf=4, n_blocks=2, dropout=True).double()
    weights = plain.state_dict().values()
    net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))  # conv_block.6 for conv_block.5
    x = golden.wave((1, 3, 16, 16))
    assert not torch.allclose(net(x), plain(x), atol=1e-3)
    torch.testing.assert_close(net.eval()(x), plain(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_norms_take_what_follows_them(norm):
    x, residual = torch.randn(2, 3, 6, 5).double(), torch.randn(2, 3, 6, 5).double()
    y = {"instance": F.instance_norm(x), "batch": F.batch_norm(x, None, None, training=True), "none": x}[norm]
    wanted = F.pad(F.leaky_relu(y, 0.2) + residual, (2, 2, 2, 2), mode="reflect")
    found = norm_layer(norm, 3, activation="leaky_relu", padding=2).double()(x, residual)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    found = norm_layer(norm, 3, activation="relu").double()(x)
    torch.testing.assert_close(found, y.relu(), atol=1e-12, rtol=0)


# ---- features for the contrastive loss ------------------------------------------------------------------------------


def test_sampled_positions_are_distinct_shared_and_from_the_generator():
    net = PatchFeatureNetwork([3, 5], width=8)
    maps = [torch.randn(2, 3, 6, 7), torch.randn(2, 5, 3, 3)]
    rows, ids = net(maps, 9, generator=torch.Generator().manual_seed(1))
    assert [row.shape for row in rows] == [(2, 9, 8), (2, 9, 8)]
    assert all(len(i.unique()) == len(i) for i in ids)
    again, same = net(maps, 9, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(ids, same, strict=True))
    with pytest.raises(ValueError, match="built for 2 feature maps, got 1"):
        net(maps[:1], 9)


def test_rows_of_zeros_have_finite_gradients():
    """A narrow generator's ReLUs leave places where all channels are 0; while biases are 0, so is the projection."""
    net = init_weights(PatchFeatureNetwork([4]))
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)
    net([x], 9)[0][0].square().sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["mlp_sample", "sample", "reshape"])
def test_a_step_can_compare_features_of_every_kind(name):
    """Keys from the maps of a forward pass; queries from what the same generator gives for their `ids`: equal for the
    same image. Rows of the other two kinds are the features themselves."""
    layers, x = (0, 4), golden.image("x", (2, 3, 16, 16))
    net = ResnetGenerator(ngf=4, n_blocks=1)
    features = feature_network(name, net.tap_channels(layers), width=5)
    maps = net(x, layers, encode_only=True)
    given, ids = features.sample(maps, 9, generator=torch.Generator().manual_seed(0))
    keys = features.project(given)
    queries = features.project(net(x, layers, encode_only=True, ids=ids))
    torch.testing.assert_close(queries, keys, atol=0, rtol=0)
    if name == "mlp_sample":
        assert [row.shape for row in keys] == [(2, 9, 5)] * 2
    elif name == "sample":
        wanted = [m.flatten(2)[:, :, at].transpose(1, 2) for m, at in zip(maps, ids, strict=True)]
        torch.testing.assert_close(keys, wanted, atol=0, rtol=0)
    else:
        assert ids is None and [row.shape for row in keys] == [(2, 16, 3), (2, 16, 8)]
        torch.testing.assert_close(keys[1][1, 5], maps[1][1, :, 4:8, 4:8].mean((1, 2)), atol=1e-6, rtol=0)
    rows, _ = features(maps, 9)
    for row in rows:
        torch.testing.assert_close(row.norm(dim=-1), torch.ones(row.shape[:2]), atol=1e-3, rtol=0)
    assert bool(features.state_dict()) is (name == "mlp_sample")


# ---- names and initialisation ---------------------------------------------------------------------------------------


def test_names_are_the_published_ones():
    with torch.device("meta"):
        assert len(generator("resnet_4blocks", 1, 2, 4).model) == 27
        assert len(generator("resnet_9blocks", 1, 2, 4, antialias_down=False).model) == 30
        assert [generator(f"unet_{size}", 1, 2, 4).num_downs for size in (128, 256)] == [7, 8]
        assert generator("stylegan2", 1, 2, 4).tap_channels((0, 1, 2)) == [1, 8, 16]
        for name, layers in {"basic": 3, "n_layers": 5}.items():
            assert len(discriminator(name, 1, 4, n_layers=5, antialias=False).model) == 3 * layers + 3
        for name in ("pixel", "stylegan2"):
            assert next(discriminator(name, 1, 4).parameters()).shape == (4, 1, 1, 1)
    for build, message in {
        lambda: generator("resnet_blocks"): "generator must be one of resnet_.*, got 'resnet_blocks'",
        lambda: generator("unet_100"): "generator must be one of resnet_.*, got 'unet_100'",
        lambda: discriminator("patch"): "discriminator must be one of basic, .*, got 'patch'",
        lambda: feature_network("global_pool", [3]): "feature network must be one of .*, got 'global_pool'",
        lambda: generator("unet_256", ngf=4, norm="layer"): "norm must be one of instance, batch, none, got 'layer'",
    }.items():
        with pytest.raises(UsageError, match=message):
            build()


STANDARD_DEVIATIONS = {  # of the weights of a convolution 16 -> 32, 3 x 3, for gain 0.02
    "xavier": 0.02 * (2 / (9 * (16 + 32))) ** 0.5,
    "normal": 0.02,
    "kaiming": (2 / (9 * 16)) ** 0.5,
    "orthogonal": 0.02 * (9 * 16) ** -0.5,
}


@pytest.mark.parametrize("init_type", STANDARD_DEVIATIONS)
def test_initialisation(init_type):
    net = init_weights(ResnetGenerator(ngf=16, n_blocks=1), init_type)
    weight = net.model[4].weight.detach()  # 32 x 16 x 3 x 3
    assert float(weight.std()) == pytest.approx(STANDARD_DEVIATIONS[init_type], rel=0.1)
    if init_type == "orthogonal":
        rows = weight.flatten(1)
        torch.testing.assert_close(rows @ rows.T, 0.02**2 * torch.eye(32), atol=1e-8, rtol=0)
    assert not net.model[4].bias.any()
    assert float(net.model[7].filt.sum()) == 32.0  # fixed filters stay


def test_default_initialisation_is_that_of_cut():
    nets = [ResnetGenerator(ngf=4, n_blocks=1) for _ in range(2)]
    for net, options in zip(nets, ((), ("xavier", 0.02)), strict=True):
        torch.manual_seed(0)
        init_weights(net, *options)
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), atol=0, rtol=0)


def test_initialisation_of_batch_norms_and_of_what_it_leaves_alone():
    norm = init_weights(generator("unet_128", ngf=16, norm="batch"), "normal").model.model[1].model[3].model[6]
    assert float(norm.weight.detach().mean()) == pytest.approx(1.0, abs=0.02)
    assert float(norm.weight.detach().std()) == pytest.approx(0.02, rel=0.4)
    assert not norm.bias.any()
    net = generator("stylegan2", ngf=1, size=64)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    torch.testing.assert_close(init_weights(net).state_dict(), before, atol=0, rtol=0)
    with pytest.raises(UsageError, match="init_type must be one of xavier, .*, got 'uniform'"):
        init_weights(net, "uniform")


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("n_layers", [3, 4])
def test_a_patch_discriminator_refuses_images_without_a_whole_patch(n_layers, antialias):
    net = PatchDiscriminator(1, 2, n_layers, antialias=antialias)
    least = 3 * 2**n_layers
    assert net(torch.rand(1, 1, least, least + 8)).shape[2:] == (1, 2 if n_layers == 3 else 1)
    with pytest.raises(UsageError, match=f"at least {least} pixels each way, got {least + 8} x {least - 1}"):
        net(torch.rand(1, 1, least + 8, least - 1))
