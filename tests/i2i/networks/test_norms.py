"""Norms with what follows them against plain torch."""

import pytest
import torch
import torch.nn.functional as F

from i2i.networks.norms import norm_layer


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_norms_take_what_follows_them(norm):
    x, residual = torch.randn(2, 3, 6, 5).double(), torch.randn(2, 3, 6, 5).double()
    y = {"instance": F.instance_norm(x), "batch": F.batch_norm(x, None, None, training=True), "none": x}[norm]
    wanted = F.pad(F.leaky_relu(y, 0.2) + residual, (2, 2, 2, 2), mode="reflect")
    found = norm_layer(norm, 3, activation="leaky_relu", padding=2).double()(x, residual)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    found = norm_layer(norm, 3, activation="relu").double()(x)
    torch.testing.assert_close(found, y.relu(), atol=1e-12, rtol=0)
