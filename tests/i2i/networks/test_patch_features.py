"""Features for the contrastive loss."""

import pytest
import torch
from support import golden
from support.numerics import check_rule

from benchmarks.systems.launch_count import Counts, Estimate
from i2i.networks import (
    PatchFeatureNetwork,
    ResnetGenerator,
    SampledFeatures,
    feature_network,
    init_weights,
)
from kernels._dtypes import wide


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


def test_positions_drawn_beforehand_are_those_that_sampling_draws():
    net = SampledFeatures((2, 3))
    maps = [torch.randn(1, 2, 5, 7), torch.randn(1, 3, 4, 4)]
    _, wanted = net.sample(maps, 9, generator=torch.Generator().manual_seed(3))
    found = net.draw([(5, 7), (4, 4)], 9, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with pytest.raises(ValueError, match="num_patches: got 17, want at most 16"):
        net.draw([(5, 7), (4, 4)], 17, torch.Generator())


# ---- layers in batches ----------------------------------------------------------------------------------

CHANNELS = (3, 8, 16, 16, 16)


def one_by_one(net: PatchFeatureNetwork, features: list[torch.Tensor]) -> list[torch.Tensor]:
    return [wide(net.get_submodule(f"mlp_{i}")(x)) for i, x in enumerate(features)]


def results(net: PatchFeatureNetwork, features: list[torch.Tensor], project, **autocast):
    """Rows of every layer, and gradients of features and parameters for random ones of the rows, by name."""
    features = [x.detach().requires_grad_() for x in features]
    net.zero_grad()
    with torch.autocast("cpu", **autocast):
        rows = project(net, features)
    generator = torch.Generator().manual_seed(1)
    torch.autograd.backward(rows, [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in rows])
    found = {f"y{i}": y.detach() for i, y in enumerate(rows)} | {f"dx{i}": x.grad for i, x in enumerate(features)}
    return found | {name: p.grad.clone() for name, p in net.named_parameters()}


def network_and_features(dtype=torch.float64, batches=(2,) * 5, patches=9):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = PatchFeatureNetwork(CHANNELS, width=16).double()
    features = [torch.randn(b, patches, c, generator=generator, dtype=torch.float64) for b, c in zip(batches, CHANNELS)]
    return net, [x.to(dtype).double() for x in features]


@pytest.mark.parametrize("patches", [9, 1])
@pytest.mark.parametrize("batches", [(2,) * 5, (1,) * 5, (1, 2, 2, 1, 2), (0,) * 5], ids=str)
def test_batches_of_layers_compute_what_their_mlps_do(batches, patches):
    net, features = network_and_features(batches=batches, patches=patches)
    wanted = results(net, features, one_by_one, enabled=False)
    found = results(net, features, PatchFeatureNetwork.project, enabled=False)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    assert found["y1"].shape == (batches[1], patches, 16)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_batches_of_layers_are_as_exact_as_their_mlps(precision):
    """At most twice torch's own error. 16 bits by autocast, of features of which some are float32, as in a step."""
    dtype = getattr(torch, precision)
    net, features = network_and_features(dtype)
    exact = results(net, features, one_by_one, enabled=False)
    net.float()
    features = [x.float() if i == 0 else x.to(dtype) for i, x in enumerate(features)]
    autocast = {"dtype": dtype, "enabled": precision != "float32"}
    found, torchs = (
        results(net, features, project, **autocast) for project in (PatchFeatureNetwork.project, one_by_one)
    )
    assert all(found[f"y{i}"].dtype == torch.float32 for i in range(5))
    exact["y"] = torch.cat([exact[f"y{i}"].flatten() for i in range(5)])  # whose size check_rule asks for
    for of in (found, torchs):
        of["y"] = torch.cat([of[f"y{i}"].flatten() for i in range(5)])
    check_rule(found, torchs, exact, dtype)


def test_gradients_of_gradients_of_batches():
    torch.manual_seed(0)
    net = PatchFeatureNetwork((2, 3, 3), width=3).double()
    features = [torch.randn(1, 2, c, dtype=torch.float64, requires_grad=True) for c in (2, 3, 3)]
    names, parameters = zip(*net.named_parameters())

    def rows(*tensors):
        held = dict(zip(names, tensors[3:]))
        return torch.func.functional_call(_Projection(net), {f"net.{k}": v for k, v in held.items()}, tensors[:3])

    given = (*features, *parameters)
    assert torch.autograd.gradcheck(rows, given) and torch.autograd.gradgradcheck(rows, given)


class _Projection(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *features):
        return tuple(self.net.project(features))


def test_frozen_batches_leave_no_gradient():
    net, features = network_and_features()
    net.requires_grad_(False)
    features[1].requires_grad_()
    net.project(features)[1].sum().backward()
    assert features[1].grad.abs().sum() > 0 and all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        assert not net.project(features)[1].requires_grad


def test_launches_of_batches():
    """Forward: weights put together, features of the widest put together; twice a bias spread over the rows, a product
    for each of three widths, then one for all, a ReLU. Backward: gradients of rows put together; of one product and of
    three those of both factors and of the bias, of the ReLU."""
    net, features = network_and_features()
    for x in features:
        x.requires_grad_()
    with Estimate(counts := Counts()):
        rows = net.project(features)
    assert counts.kinds == {"copies": 2 + 2, "matrix products": 3 + 1, "others": 1}
    gradients = [torch.empty_like(y) for y in rows]
    with Estimate(counts := Counts()):
        torch.autograd.backward(rows, gradients)
    assert counts.kinds == {"copies": 1, "matrix products": 2 + 6, "others": 2 + 1}


def test_a_cpu_computes_layer_by_layer():
    """The same bits as ever."""
    net, features = network_and_features()
    mlps = [net.get_submodule(f"mlp_{i}") for i in range(5)]
    wanted = [wide(mlp(x)) for mlp, x in zip(mlps, features)]
    torch.testing.assert_close(net.project(features), wanted, atol=0, rtol=0)
