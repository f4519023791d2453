"""The networks against what the published ones returned, and the rules of their taps."""

import golden_values as golden
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernels
from i2i.networks import (
    NCE_LAYERS,
    PatchDiscriminator,
    PatchFeatureNetwork,
    ResnetGenerator,
    init_weights,
)

CLASSIC = {"antialias_down": False, "antialias_up": False}
GENERATORS = {
    "cut_resnet9": {},
    "cut_resnet9_no_antialias": {"ngf": 32, **CLASSIC},
    "cut_resnet6_batch2": {"ngf": 32, "n_blocks": 6},
    "cyclegan_resnet9": CLASSIC,
}
DISCRIMINATORS = {
    "cut_patchgan3": {},
    "cut_patchgan3_no_antialias": {"antialias": False},
    "cyclegan_patchgan3": {"antialias": False},
}
IMPLS = ("auto", "reference")
# float32 on both sides. Some 24 layers in a row, each rounding anew and each norm rescaling to unit size: about 5e-6
# was measured on outputs within [-1, 1]; four times that leaves room for other convolution algorithms.
DEEP = 2e-5
SHALLOW = 5e-6  # D has 5 layers: 1e-6 was measured on scores up to 1.7; means of features over space: 3e-7


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", GENERATORS)
@torch.no_grad()
def test_generator_is_the_published_one(name, impl):
    wanted = golden.load(name)
    net = ResnetGenerator(**GENERATORS[name], impl=impl)
    assert golden.fill(net) == wanted["keys"].tolist()
    x = golden.image("x", tuple(wanted["input_shape"]))
    output, features = net(x, NCE_LAYERS)
    torch.testing.assert_close(output, torch.from_numpy(wanted["output"]), atol=DEEP, rtol=0)
    torch.testing.assert_close(net(x), output, atol=0, rtol=0)
    if "feat_shapes" in wanted:
        assert [str(tuple(feature.shape)) for feature in features] == wanted["feat_shapes"].tolist()
        for layer, feature in zip(NCE_LAYERS, features, strict=True):
            mean = torch.from_numpy(wanted[f"feat_mean_{layer}"])
            torch.testing.assert_close(feature.mean((0, 2, 3)), mean, atol=SHALLOW, rtol=0)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", DISCRIMINATORS)
@torch.no_grad()
def test_discriminator_is_the_published_one(name, impl):
    wanted = golden.load(name)
    net = PatchDiscriminator(**DISCRIMINATORS[name], impl=impl)
    assert golden.fill(net) == wanted["keys"].tolist()
    scores = net(golden.image("x", tuple(wanted["input_shape"])))
    torch.testing.assert_close(scores, torch.from_numpy(wanted["output"]), atol=SHALLOW, rtol=0)


def test_feature_network_is_the_published_one():
    wanted = golden.load("cut_patchsample_mlp")
    shapes = [(2, 3, 70, 70), (2, 128, 64, 64), (2, 256, 32, 32), (2, 256, 16, 16), (2, 256, 16, 16)]
    net = PatchFeatureNetwork([shape[1] for shape in shapes])
    assert golden.fill(net) == wanted["keys"].tolist()
    maps = [golden.normal(f"feat{i}", shape) for i, shape in enumerate(shapes)]
    ids = [torch.from_numpy(wanted[f"ids_{i}"]) for i in range(len(shapes))]
    with torch.no_grad():
        rows, used = net(maps, ids=ids)
    assert all(torch.equal(a, b) for a, b in zip(used, ids, strict=True))
    for i, row in enumerate(rows):
        # unit vectors after two linear layers: entries of about 0.06, so this is 1e-5 of them
        torch.testing.assert_close(row.flatten(0, 1), torch.from_numpy(wanted[f"out_{i}"]), atol=5e-7, rtol=0)


# Columns of golden.summary. Computed by the published code in float64, printed with 10 digits.
CLOSED_FORM = [
    (True, None, [-89.16138501, 112.7974759, -0.06272077725, -0.008870638903, -0.02582372227]),
    (True, 4, [73.3875717, 9234.29473, 0.5432174524, -0.5450841428, -0.1903158491]),
    (True, 8, [51.96071553, 14873.08293, 1.248258168, 1.806238547, 0.0215426618]),
    (True, 16, [5104.83541, 16608.83173, 4.092010895, -0.310745298, 0.4453423224]),
    (False, None, [-86.76256951, 41.80936948, 0.1166510198, -0.03780304572, 0.1076587741]),
    (False, 8, [5642.999039, 8082.903542, 2.401918319, 4.008278617, 0]),  # relu(norm): its last element is cut to 0
    (False, 16, [5642.999039, 33095.09043, 4.504159283, 1.983638165, 0.4228768957]),
]


@pytest.mark.parametrize("antialias", [True, False])
@torch.no_grad()
def test_generator_in_float64(antialias):
    net = golden.fill_closed_form(ResnetGenerator(ngf=16, antialias_down=antialias, antialias_up=antialias))
    output, features = net(golden.wave((1, 3, 64, 64)), NCE_LAYERS)
    found = {None: output, **dict(zip(NCE_LAYERS, features, strict=True))}
    for which, layer, figures in CLOSED_FORM:
        if which == antialias:
            assert golden.summary(found[layer]) == pytest.approx(figures, rel=1e-8, abs=1e-9), layer


@torch.no_grad()
def test_discriminator_and_resampling_in_float64():
    x = golden.wave((1, 3, 64, 64))
    for antialias, figures in {
        True: [-0.9174022902, 1.013510293, -0.1761345773, 0.1532041549, 0.1273199701],
        False: [-0.2346850154, 8.832329248, -0.9992125104, 0.2848223438, -0.3022157819],
    }.items():
        net = golden.fill_closed_form(PatchDiscriminator(ndf=16, antialias=antialias))
        assert golden.summary(net(x)) == pytest.approx(figures, rel=1e-8)
    figures = [299.4640211, 258.2707992, 0.4794255386, 0.8745284971, 0.9962867637]
    assert golden.summary(kernels.BlurUpsample(3).double()(golden.wave((1, 3, 5, 6)))) == pytest.approx(
        figures, rel=1e-8
    )


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("down", [True, False])
@torch.no_grad()
def test_every_tap_is_what_the_unfused_layers_leave(down, up):
    """All indices of all four combinations against a plain Sequential with in-place ReLUs, run layer by layer."""
    net = ResnetGenerator(ngf=4, n_blocks=2, antialias_down=down, antialias_up=up).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = golden.wave((2, 3, 20, 24))
    layers = list(range(len(net.model)))
    output, features = net(x, layers)
    y, unfused = x, []
    for index, layer in enumerate(net.model):
        if type(layer).__name__ == "InstanceNorm2d":
            y = F.instance_norm(y)
        elif isinstance(layer, nn.Identity) and index == len(layers) - 3:
            y = F.pad(y, (3, 3, 3, 3), mode="reflect")
        elif isinstance(layer, nn.Identity):
            y = y.relu_()  # rewrites what was tapped one place earlier, as published
        elif isinstance(layer, nn.Sequential) or hasattr(layer, "conv_block"):
            conv1, conv2 = layer.conv_block[1], layer.conv_block[5]
            h = F.instance_norm(conv1(F.pad(y, (1, 1, 1, 1), mode="reflect"))).relu()
            y = y + F.instance_norm(conv2(F.pad(h, (1, 1, 1, 1), mode="reflect")))
        else:
            y = layer(y)
        unfused.append(y)
    for index, (got, want) in enumerate(zip(features, unfused, strict=True)):
        torch.testing.assert_close(got, want, atol=1e-9, rtol=0, msg=lambda m, i=index: f"tap {i}: {m}")
    torch.testing.assert_close(output, unfused[-1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_patches_are_the_maps_at_their_positions(impl):
    """Tapping on the way, in gradients too; the last two taps lie where norm and padding are one operator."""
    net = ResnetGenerator(ngf=4, n_blocks=1, impl=impl)
    x = torch.randn(2, 3, 16, 16)
    layers = (0, 3, 8, len(net.model) - 5, len(net.model) - 4)
    ids = [torch.tensor([5, 0, 15, 5]) for _ in layers]
    results = []
    for tapped in (False, True):
        output, features = net(x, layers, ids=ids if tapped else None)
        if not tapped:
            features = [f.flatten(2)[:, :, i].transpose(1, 2) for f, i in zip(features, ids, strict=True)]
        loss = output.square().sum() + sum((f**3).sum() for f in features)
        results.append([output, *features, *torch.autograd.grad(loss, net.parameters())])
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="one tensor for each of the 5 layers, got 4"):
        net(x, layers, ids=ids[:4])


def test_encode_only_stops_after_the_last_tap():
    net = ResnetGenerator(ngf=4, n_blocks=6)
    net.model[17].register_forward_hook(lambda *_: pytest.fail("computed past the last tap"))
    features = net(torch.zeros(1, 3, 32, 32), NCE_LAYERS, encode_only=True)
    assert [f.shape[1] for f in features] == net.tap_channels(NCE_LAYERS) == [3, 8, 16, 16, 16]


@pytest.mark.parametrize("layers", [(16, 0, 4), (0, 0), (-1,), (99,)])
def test_layers_that_make_no_sense_are_refused(layers):
    with pytest.raises(ValueError, match="layers must be ascending"):
        ResnetGenerator(ngf=4, n_blocks=1)(torch.zeros(1, 3, 16, 16), layers)


def test_published_parameter_counts():
    def count(net: nn.Module) -> int:
        return sum(parameter.numel() for parameter in net.parameters())

    with torch.device("meta"):
        for kw in ({}, CLASSIC, {"antialias_up": False}, {"antialias_down": False}):
            assert count(ResnetGenerator(**kw)) == 11_378_179
        assert count(ResnetGenerator(n_blocks=6)) == 7_837_699
        for n_layers, wanted in {1: 136_385, 2: 662_977, 3: 2_764_737, 4: 6_959_553, 5: 11_154_369}.items():
            assert count(PatchDiscriminator(n_layers=n_layers)) == wanted
        assert count(PatchFeatureNetwork([3, 128, 256, 256, 256])) == 560_384


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


def test_initialisation_is_xavier_with_gain_002():
    net = init_weights(ResnetGenerator(ngf=16, n_blocks=1))
    weight = net.model[4].weight  # 32 x 16 x 3 x 3
    assert float(weight.detach().std()) == pytest.approx(0.02 * (2 / (9 * (16 + 32))) ** 0.5, rel=0.1)
    assert not net.model[4].bias.any()
    assert float(net.model[7].filt.sum()) == 32.0  # fixed filters stay
