"""What all methods share: networks by the letters of the published files, optimisers, precision, moving averages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import kernels
from i2i import distributed
from i2i.config import Config
from i2i.devices import move_network
from i2i.graphs import Draws, Graphs, Losses
from i2i.methods.adam import Adam
from i2i.methods.averages import Average
from i2i.methods.half_weights import HalfWeights
from i2i.methods.overlap import Overlap

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Method:
    """One published system. Subclasses say what it is built of (`build`, `build_optimizers`) and what one training step
    does: what it takes from the host (`draw`) and what the device computes (`compute`). Everything else reads images,
    schedules, saves and shows, and is the same for all."""

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
        # Of maps from the images to the gradients, and of weights.
        self.form = kernels.preferred_memory_format(self.device, getattr(torch, config.precision))
        self.rngs: dict[str, torch.Generator] = {}
        # Built and initialised on the CPU, so that a seed gives the same weights on every device.
        torch.manual_seed(config.seed)
        self.networks = self.build()
        for name, net in self.networks.items():
            setattr(self, name, move_network(net, self.device, self.form))
        self.optimizers = self.build_optimizers()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.averages = {
            name: Average(self.networks[name], config.ema) for name in (self.generators if config.ema else ())
        }
        self.half_weights: dict[str, HalfWeights] = {}
        if config.precision in AUTOCAST:
            self.half_weights = {n: HalfWeights(net, AUTOCAST[config.precision]) for n, net in self.networks.items()}
        self.overlap = Overlap()
        self.use_graphs(Graphs(self.device, config.cuda_graphs))

    def build(self) -> dict[str, nn.Module]:
        """The networks by the letters of the published files; each becomes an attribute of that name."""
        raise NotImplementedError

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        raise NotImplementedError

    def use_graphs(self, graphs: Graphs) -> None:
        """Steps go through `graphs` from now on."""
        self.graphs = graphs
        # What a graph reads at every replay, and the number 2e-4 would be a part of it.
        self.rates = {
            name: [Rate(self.device) for _ in optimizer.param_groups]
            for name, optimizer in (self.optimizers.items() if graphs.recorder else ())
        }

    def draw(self, *batch: Tensor) -> Draws:
        """What a step on this batch takes from the host: everything random, in the order of its generators, and every
        decision. Of `batch`, only the shapes are looked at, for the device may not have it yet."""
        return Draws()

    def compute(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """What the device does in a step: a function of these tensors and of networks and optimisers, as `Graphs.run`
        wants one. Returns the losses, detached, by their published names."""
        raise NotImplementedError

    def step(self, *batch: Tensor) -> Losses:
        """One training step on a batch as the data set gives it, on any device: of all networks whose turn it is, of
        the moving averages and of the scale of float16. Returns the losses, detached, by their published names."""
        draws = self.draw(*batch)
        for name, rates in self.rates.items():
            for rate, group in zip(rates, self.optimizers[name].param_groups, strict=True):
                rate.follow(group["lr"])
        for weights in self.half_weights.values():
            weights.check()
        losses = self.graphs.run(self.compute_all, batch, draws)
        for average in self.all_averages():
            average.count()
        return losses

    def compute_all(self, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """`compute`, and what comes after each step."""
        if self.scaler.is_enabled():  # of a step that was broken off, it would know which optimisers have had theirs
            self.scaler._per_optimizer_states.clear()
            for optimizer in self.optimizers.values():
                vars(optimizer).pop("grad_scale", None)
                vars(optimizer).pop("found_inf", None)
        losses = self.compute(batch, draws)
        if self.scaler.is_enabled():
            self.scaler.update()
        for name, average in self.averages.items():
            average.follow(self.networks[name])
        return losses

    def all_averages(self) -> list[Average]:
        """The moving averages that follow once a step."""
        return list(self.averages.values())

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
        return Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """For the forward passes of a part of a step, in the precision of the configuration."""
        dtype = AUTOCAST.get(self.config.precision, torch.bfloat16)
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, dtype, enabled=self.config.precision in AUTOCAST))
            for weights in self.half_weights.values():
                weights.check()
                stack.enter_context(weights.used(in_buckets=self.overlapping))
            yield

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Within `autocast`: for what needs its weights, and all else, as they are."""
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            for weights in self.half_weights.values():
                stack.enter_context(weights.unused())
            yield

    def zero_grad(self, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad()

    @property
    def overlapping(self) -> bool:
        """Whether gradients are averaged during backward passes. Not where steps are recorded: a graph's replay calls
        no hooks."""
        return distributed.world() > 1 and self.graphs.recorder is None

    def backward(self, loss: Tensor, *, last: Sequence[str] = ()) -> None:
        """Adds the gradients of `loss`, scaled in float16. `last`: networks to which no backward pass comes after this
        one before they are updated; several processes average their gradients meanwhile."""
        self.go_back([self.scaler.scale(loss)], [None], last=last)

    def go_back(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], *, last: Sequence[str] = ()
    ) -> None:
        """From outputs with these gradients, scaled already, as far as there is a graph. `last`: see `backward`."""
        named = last and self.overlapping
        with self.overlap.last({name: self.networks[name] for name in last}) if named else nullcontext():
            torch.autograd.backward(outputs, gradients)

    def update(self, *names: str) -> None:
        """Step these optimisers, with gradients averaged over all processes."""
        for name in names:
            optimizer = self.optimizers[name]
            if distributed.world() > 1:
                gradients = self.overlap.finish([p for group in optimizer.param_groups for p in group["params"]])
                self.graphs.outside(distributed.average_gradients, gradients)
            with self.device_rates(name):
                self.scaler.step(optimizer)
            updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for weights in self.half_weights.values():
                if any(id(weight) in updated for weight in weights.weights):
                    weights.renew()

    @contextmanager
    def device_rates(self, name: str) -> Iterator[None]:
        """The learning rates of optimiser `name` are tensors meanwhile, where steps are recorded: everybody else, the
        checkpoint too, knows them as numbers."""
        groups = self.optimizers[name].param_groups if name in self.rates else []
        before = [{key: group[key] for key in ("lr", "capturable")} for group in groups]
        for group, rate in zip(groups, self.rates.get(name, ())):
            group |= {"lr": rate.tensor, "capturable": self.graphs.recording is not None}
        try:
            yield
        finally:
            for group, numbers in zip(groups, before):
                group |= numbers

    def translator(self, name: str) -> nn.Module:
        """The network to translate with: the moving average of `name`, where there is one."""
        return self.averages[name].module if name in self.averages else self.networks[name]

    @torch.no_grad()
    def apply(self, name: str, images: Tensor) -> Tensor:
        """`images` through generator `name` as it is used after training: no gradients, float32 result."""
        net = self.translator(name).eval()
        with self.autocast():
            output = net(images.to(self.device, memory_format=self.form))
        net.train()
        return output.float()

    def translate(self, images: Tensor) -> Tensor:
        """(N, input_nc, H, W) of domain A in [-1, 1] -> (N, output_nc, H, W) of domain B."""
        return self.apply(self.generators[0], images)


class Rate:
    """A learning rate on the device."""

    def __init__(self, device: torch.device):
        self.tensor, self.value = torch.empty((), device=device), math.nan

    def follow(self, value: float) -> None:
        if value != self.value:
            self.tensor.fill_(value)
            self.value = value


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
