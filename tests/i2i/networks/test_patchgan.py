"""The PatchGAN discriminators."""

import pytest
import torch

from i2i.errors import UsageError
from i2i.networks import (
    PatchDiscriminator,
)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("n_layers", [3, 4])
def test_a_patch_discriminator_refuses_images_without_a_whole_patch(n_layers, antialias):
    net = PatchDiscriminator(1, 2, n_layers, antialias=antialias)
    least = 3 * 2**n_layers
    assert net(torch.rand(1, 1, least, least + 8)).shape[2:] == (1, 2 if n_layers == 3 else 1)
    with pytest.raises(UsageError, match=f"at least {least} pixels each way, got {least + 8} x {least - 1}"):
        net(torch.rand(1, 1, least + 8, least - 1))
