"""Features for the contrastive loss."""

import pytest
import torch
from support import golden

from i2i.networks import (
    PatchFeatureNetwork,
    ResnetGenerator,
    feature_network,
    init_weights,
)


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
