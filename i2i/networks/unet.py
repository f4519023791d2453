"""The U-Net generator of pix2pix, with the indices and keys of the published checkpoints (see resnet.py)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i.errors import UsageError
from i2i.networks.keys import Recognised, Settings, State, norm_behind, norm_name
from i2i.networks.norms import norm_layer


class UnetBlock(nn.Module):
    """One level between the outermost and the bottleneck: halves the sides, goes on in `inside`, doubles them again.

    (N, outer, H, W) -> (N, 2 outer, H, W): its input, then what came back from below, both behind the ReLU that the
    level above starts its way up with.

    The published skip is leaky_relu(x), because an in-place activation rewrites x. Every skip goes through a ReLU next,
    and relu(leaky_relu(x)) = relu(x): so the ReLU is taken here, where that of the other half is part of its norm.
    """

    def __init__(
        self,
        outer: int,
        inner: int,
        inside: UnetBlock | None,
        *,
        below_top: bool = False,
        norm: str,
        dropout: bool = False,
        impl: str,
    ):
        super().__init__()
        bias = norm == "instance"
        # The leaky ReLU before the convolution is part of the norm of the level above; only the top has no norm.
        down: list[nn.Module] = [nn.LeakyReLU(0.2, inplace=True) if below_top else nn.Identity()]
        down.append(nn.Conv2d(outer, inner, 4, 2, padding=1, bias=bias))
        if inside is None:  # the bottleneck, no norm: its maps may be single pixels
            turn, back = [nn.ReLU(inplace=True)], inner
        else:
            turn = [norm_layer(norm, inner, activation="leaky_relu", impl=impl), inside, nn.Identity()]
            back = 2 * inner
        up = [
            nn.ConvTranspose2d(back, outer, 4, 2, padding=1, bias=bias),
            norm_layer(norm, outer, activation="relu", impl=impl),
        ]
        if dropout:  # published between norm and ReLU; they commute
            up.append(nn.Dropout(0.5))
        self.model = nn.Sequential(*down, *turn, *up)

    def forward(self, x: Tensor) -> Tensor:
        up = self.model(x)
        return torch.cat([F.relu(x), up], 1)


class UnetGenerator(nn.Module):
    """(N, input_nc, H, W) in [-1, 1] -> (N, output_nc, H, W) in (-1, 1), for H and W multiples of 2**num_downs.

    `num_downs` 7 is the published unet_128, 8 unet_256; at least 5. `norm`: "instance", "batch" or "none".
    `dropout`: 0.5 on the way up, in the num_downs - 5 levels of 8 ngf channels above the bottleneck. `impl` chooses the
    implementation of the fused operators (see `kernels.instance_norm`).
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        num_downs: int = 8,
        *,
        norm: str = "instance",
        dropout: bool = False,
        impl: str = "auto",
    ):
        super().__init__()
        if num_downs < 5:
            raise UsageError(f"num_downs must be at least 5, got {num_downs}")
        self.num_downs = num_downs
        block = None
        widths = [ngf * min(2**level, 8) for level in range(num_downs)]  # of the maps after each convolution down
        for level in range(num_downs - 1, 0, -1):
            block = UnetBlock(
                widths[level - 1],
                widths[level],
                block,
                below_top=level == 1,
                norm=norm,
                dropout=dropout and 4 <= level < num_downs - 1,
                impl=impl,
            )
        assert block is not None  # there are levels
        self.model: Any = nn.Module()  # for the keys, which start with model.model
        self.model.model = nn.Sequential(
            nn.Conv2d(input_nc, ngf, 4, 2, padding=1, bias=norm == "instance"),
            block,
            nn.Identity(),  # ReLU
            nn.ConvTranspose2d(2 * ngf, output_nc, 4, 2, padding=1),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        step = 2**self.num_downs
        if x.shape[2] % step or x.shape[3] % step:
            raise UsageError(
                f"images must have sides that are multiples of {step}, got {x.shape[2]} x {x.shape[3]} (height x width)"
            )
        return self.model.model(x)


def unet_generator(state: State, impl: str, config: Settings) -> Recognised | None:
    """A recogniser (see i2i/networks/recognise.py)."""
    if "model.model.0.weight" not in state or "model.model.3.weight" not in state:
        return None
    ngf, input_nc = state["model.model.0.weight"].shape[:2]
    output_nc = state["model.model.3.weight"].shape[1]
    downs = max(key.count("model.") for key in state) - 1
    norm = norm_behind(state, "model.model.1.model.1", "model.model.1.model.2")
    # Dropout has no key. Published: on in pix2pix, whose U-Nets have batch norm, off in CycleGAN.
    dropout = bool(config.get("dropout", norm == "batch"))
    net = UnetGenerator(input_nc, output_nc, ngf, downs, norm=norm, dropout=dropout, impl=impl)
    parts = [f"U-Net generator, {downs} levels, width {ngf}", norm_name(norm), *(["dropout"] if dropout else [])]
    return net, f"{', '.join(parts)}, {input_nc} -> {output_nc} channels (pix2pix, CycleGAN)"
