"""How the published systems initialise their networks."""

from __future__ import annotations

from torch import nn

from i2i.errors import UsageError

INIT_TYPES = ("xavier", "normal", "kaiming", "orthogonal")


def init_weights(net: nn.Module, init_type: str = "xavier", gain: float = 0.02) -> nn.Module:
    """Initialise convolutions, linear layers and batch norms in place; other modules keep what they were built with.

    Weights: "xavier" (CUT) normal of Glorot's variance times gain^2; "normal" (CycleGAN, pix2pix) N(0, gain^2);
    "kaiming" normal of He's variance over the inputs, without gain; "orthogonal" with gain. Batch norm: weights
    N(1, gain^2). Biases 0. UsageError for another init_type.
    """
    if init_type not in INIT_TYPES:
        raise UsageError(f"init_type must be one of {', '.join(INIT_TYPES)}, got {init_type!r}")
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if init_type == "xavier":
                nn.init.xavier_normal_(module.weight, gain)
            elif init_type == "normal":
                nn.init.normal_(module.weight, 0.0, gain)
            elif init_type == "kaiming":
                nn.init.kaiming_normal_(module.weight)
            else:
                nn.init.orthogonal_(module.weight, gain)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, gain)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return net
