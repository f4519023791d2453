"""What all methods share: networks by the letters of the published files, optimisers, precision, moving averages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from i2i import distributed
from i2i.config import Config
from i2i.devices import move_network

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Method:
    """One published system. Subclasses say what it is built of (`build`, `build_optimizers`) and what one training step
    does (`step`); everything else reads images, schedules, saves and shows, and is the same for all."""

    name: ClassVar[str]
    title: ClassVar[str]  # one line for people: what it does, and the paper
    Config: ClassVar[type[Config]]
    generators: ClassVar[tuple[str, ...]] = ("G",)  # the networks that translate
    generator_losses: ClassVar[tuple[str, ...]] = ("G",)  # whose sum is what the generators minimise
    full_view_in_decay: ClassVar[bool] = False  # CUT: whole images instead of crops while the learning rate falls

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    def __init__(self, config: Config, device: torch.device | str = "cpu", impl: str = "auto"):
        self.config, self.device, self.impl = config, torch.device(device), impl
        self.rngs: dict[str, torch.Generator] = {}
        # Built and initialised on the CPU, so that a seed gives the same weights on every device.
        torch.manual_seed(config.seed)
        self.networks = self.build()
        for name, net in self.networks.items():
            setattr(self, name, move_network(net, self.device))
        self.optimizers = self.build_optimizers()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.averages = {
            name: AveragedModel(self.networks[name], multi_avg_fn=get_ema_multi_avg_fn(config.ema))
            for name in (self.generators if config.ema else ())
        }

    def build(self) -> dict[str, nn.Module]:
        """The networks by the letters of the published files; each becomes an attribute of that name."""
        raise NotImplementedError

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        raise NotImplementedError

    def step(self, *batch: Tensor) -> dict[str, Tensor]:
        """One training step on a batch as the data set gives it. Returns the losses, detached, by their published
        names; call `after_step` then."""
        raise NotImplementedError

    def visuals(self, *batch: Tensor) -> dict[str, Tensor]:
        """Columns of a picture grid, by their published names, for a batch."""
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """What a resumed run needs besides networks, optimisers and random states: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        pass

    def adam(self, *names: str, lr: float | None = None, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        parameters = [p for name in names for p in self.networks[name].parameters()]
        betas = (self.config.beta1, self.config.beta2)
        lr = lr or self.config.lr
        return torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def autocast(self) -> torch.autocast:
        """One region for each part of a step: autocast keeps its 16-bit copies of the weights until a region ends, and
        would compute with copies from before an update."""
        dtype = AUTOCAST.get(self.config.precision, torch.bfloat16)
        return torch.autocast(self.device.type, dtype, enabled=self.config.precision in AUTOCAST)

    def zero_grad(self, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self, *names: str) -> None:
        """Step these optimisers, with gradients averaged over all processes."""
        for name in names:
            optimizer = self.optimizers[name]
            distributed.average_gradients(p for group in optimizer.param_groups for p in group["params"])
            self.scaler.step(optimizer)

    def after_step(self) -> None:
        if self.scaler.is_enabled():
            self.scaler.update()
        for name, average in self.averages.items():
            average.update_parameters(self.networks[name])

    def translator(self, name: str) -> nn.Module:
        """The network to translate with: the moving average of `name`, where there is one."""
        return self.averages[name].module if name in self.averages else self.networks[name]

    @torch.no_grad()
    def apply(self, name: str, images: Tensor) -> Tensor:
        """`images` through generator `name` as it is used after training: no gradients, float32 result."""
        net = self.translator(name).eval()
        with self.autocast():
            output = net(images.to(self.device, memory_format=torch.channels_last))
        net.train()
        return output.float()

    def translate(self, images: Tensor) -> Tensor:
        """(N, input_nc, H, W) of domain A in [-1, 1] -> (N, output_nc, H, W) of domain B."""
        return self.apply(self.generators[0], images)


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """No gradients for the weights of these networks; those for their inputs go through."""
    for net in networks:
        net.requires_grad_(False)
    try:
        yield
    finally:
        for net in networks:
            net.requires_grad_(True)
