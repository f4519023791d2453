"""The networks against what the published ones returned, and the rules of their taps."""

import pytest
import torch
import torch.nn.functional as F
from support import golden
from torch import nn

import kernels
from i2i.networks import (
    NCE_LAYERS,
    PatchDiscriminator,
    PatchFeatureNetwork,
    PixelDiscriminator,
    ResnetGenerator,
    UnetGenerator,
    discriminator,
    generator,
)

CLASSIC = {"antialias_down": False, "antialias_up": False}
GENERATORS = {
    "cut_resnet9": {},
    "cut_resnet9_no_antialias": {"ngf": 32, **CLASSIC},
    "cut_resnet6_batch2": {"ngf": 32, "n_blocks": 6},
    "cyclegan_resnet9": CLASSIC,
}
OTHERS = {
    "cut_patchgan3": (PatchDiscriminator, {}),
    "cut_patchgan3_no_antialias": (PatchDiscriminator, {"antialias": False}),
    "cyclegan_patchgan3": (PatchDiscriminator, {"antialias": False}),
    "pix2pix_patchgan3_batch": (PatchDiscriminator, {"input_nc": 6, "norm": "batch", "antialias": False}),
    "cyclegan_pixel": (PixelDiscriminator, {}),
    "pix2pix_unet128_batch": (UnetGenerator, {"ngf": 32, "num_downs": 7, "norm": "batch", "dropout": True}),
    "pix2pix_unet256_batch": (UnetGenerator, {"ngf": 32, "norm": "batch", "dropout": True}),
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


# Batch norm is torch's own: one implementation.
@pytest.mark.parametrize("name, impl", [(n, i) for n in OTHERS for i in IMPLS if i == "auto" or "batch" not in n])
@torch.no_grad()
def test_other_networks_are_the_published_ones(name, impl):
    """In eval mode, as the figures were taken. In float64 the network is the published one up to the rounding of those
    figures; in float32 it is as near to that as plain torch, whose convolutions round more on some machines: with AVX2
    alone 7e-6."""
    wanted = golden.load(name)
    build, options = OTHERS[name]
    net, plain = (build(**options, impl=i).eval() for i in (impl, "reference"))
    assert golden.fill(net) == golden.fill(plain) == wanted["keys"].tolist()
    x = golden.image("x", tuple(wanted["input_shape"]))
    output, torchs = net(x), plain(x)
    exact = plain.double()(x.double())
    torch.testing.assert_close(exact.float(), torch.from_numpy(wanted["output"]), atol=SHALLOW, rtol=0)
    assert (output - exact).abs().max() <= 2 * (torchs - exact).abs().max() + 1e-6


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


BATCH = {"norm": "batch"}
# Network, shape of its input, figures; in train mode, so batch norms take their statistics from the input.
CLOSED_FORM_OTHERS = [
    (
        lambda: ResnetGenerator(ngf=16, n_blocks=6, **BATCH, **CLASSIC),
        (1, 3, 64, 64),
        [-74.99527939, 234.0267157, 0.01694191425, -0.1550792549, 0.0578300285],
    ),
    (
        lambda: UnetGenerator(ngf=16, num_downs=7, **BATCH),
        (2, 3, 128, 128),
        [-192.6167392, 683.2180617, 0.06393332327, -0.03104533729, -0.03352328842],
    ),
    (
        lambda: UnetGenerator(ngf=16, num_downs=8, **BATCH),
        (1, 3, 256, 256),
        [-1099.165901, 5926.075723, 0.006476349158, -0.2163264329, -0.05728897921],
    ),
    (
        lambda: PatchDiscriminator(ndf=16),
        (1, 3, 64, 64),
        [-0.9174022902, 1.013510293, -0.1761345773, 0.1532041549, 0.1273199701],
    ),
    (
        lambda: PatchDiscriminator(ndf=16, antialias=False),
        (1, 3, 64, 64),
        [-0.2346850154, 8.832329248, -0.9992125104, 0.2848223438, -0.3022157819],
    ),
    (
        lambda: PatchDiscriminator(6, ndf=16, antialias=False, **BATCH),
        (1, 6, 64, 64),
        [-0.2187431698, 1.147267563, -0.02324352473, -0.1463353063, 0.2604029244],
    ),
    (
        lambda: PixelDiscriminator(ndf=16),
        (1, 3, 64, 64),
        [22.12421295, 0.8271451147, -0.004078474746, -0.008682010271, -0.001353991497],
    ),
]


@pytest.mark.parametrize("build, shape, figures", CLOSED_FORM_OTHERS)
@torch.no_grad()
def test_other_networks_in_float64(build, shape, figures):
    assert golden.summary(golden.fill_closed_form(build())(golden.wave(shape))) == pytest.approx(figures, rel=1e-8)


@torch.no_grad()
def test_resampling_in_float64():
    figures = [299.4640211, 258.2707992, 0.4794255386, 0.8745284971, 0.9962867637]
    assert golden.summary(kernels.BlurUpsample(3).double()(golden.wave((1, 3, 5, 6)))) == pytest.approx(
        figures, rel=1e-8
    )


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("down", [True, False])
@torch.no_grad()
def test_every_tap_is_what_the_unfused_layers_leave(down, up, norm):
    """All indices of all four combinations against a plain Sequential with in-place ReLUs, run layer by layer."""
    net = ResnetGenerator(ngf=4, n_blocks=2, norm=norm, antialias_down=down, antialias_up=up).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = golden.wave((2, 3, 20, 24))
    layers = list(range(len(net.model)))
    output, features = net(x, layers)
    y, unfused = x, []

    def normalise(y, layer):
        if norm == "instance":
            return F.instance_norm(y)
        return F.batch_norm(y, None, None, layer.weight, layer.bias, training=True)

    for index, layer in enumerate(net.model):
        if isinstance(layer, (nn.InstanceNorm2d, nn.BatchNorm2d)):
            y = normalise(y, layer)
        elif isinstance(layer, nn.Identity) and index == len(layers) - 3:
            y = F.pad(y, (3, 3, 3, 3), mode="reflect")
        elif isinstance(layer, nn.Identity):
            y = y.relu_()  # rewrites what was tapped one place earlier, as published
        elif isinstance(layer, nn.Sequential) or hasattr(layer, "conv_block"):
            _, conv1, norm1, _, _, conv2, norm2 = layer.conv_block
            h = normalise(conv1(F.pad(y, (1, 1, 1, 1), mode="reflect")), norm1).relu()
            y = y + normalise(conv2(F.pad(h, (1, 1, 1, 1), mode="reflect")), norm2)
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
    used = [p for name, p in net.named_parameters() if not ("conv_block" in name and name.endswith("bias"))]
    results = []
    for tapped in (False, True):
        output, features = net(x, layers, ids=ids if tapped else None)
        if not tapped:
            features = [f.flatten(2)[:, :, i].transpose(1, 2) for f, i in zip(features, ids, strict=True)]
        loss = output.square().sum() + sum((f**3).sum() for f in features)
        results.append([output, *features, *torch.autograd.grad(loss, used)])
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
        assert count(PatchDiscriminator(antialias=False, norm="batch")) == 2_765_633
        assert count(PatchDiscriminator(6, antialias=False, norm="batch")) == 2_768_705
        assert count(PixelDiscriminator()) == 8_705
        for num_downs, (instance, batch) in {7: (41_825_667, 41_828_995), 8: (54_409_603, 54_413_955)}.items():
            assert count(UnetGenerator(num_downs=num_downs)) == instance
            assert count(UnetGenerator(num_downs=num_downs, norm="batch")) == batch
        assert count(PatchFeatureNetwork([3, 128, 256, 256, 256])) == 560_384
        assert count(generator("stylegan2", ngf=10, size=64)) == 3_068_404
        assert count(discriminator("stylegan2", ndf=8, size=64)) == 5_885_473
