"""Looking into training steps: what gradients they leave, before the optimisers use them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from i2i.methods.base import Method
from i2i.methods.losses import GANLoss, discriminator_loss, draw_share, gradient_penalty
from i2i.training import checkpoint
from i2i.training.schedule import Schedule


def in_float64(model: Method) -> Method:
    for net in model.networks.values():
        net.double()
    return model


def record_gradients(model: Method) -> dict[str, list[Tensor | None]]:
    """From now on updates change nothing; by optimiser, what they would have used is put here."""
    found: dict[str, list[Tensor | None]] = {}

    def update(*names: str) -> None:
        for name in names:
            parameters = [p for group in model.optimizers[name].param_groups for p in group["params"]]
            found[name] = [None if p.grad is None else p.grad.clone() for p in parameters]

    model.update = update
    return found


def assert_gradients(found: list[Tensor], loss: Tensor, *networks: nn.Module) -> None:
    """`found` are the gradients of `loss` by the weights of these networks, one after the other. In float64: 1e-12 is
    some 1000 roundings of gradients of up to 1."""
    wanted = torch.autograd.grad(loss, [p for net in networks for p in net.parameters()])
    torch.testing.assert_close(found, list(wanted), atol=1e-12, rtol=1e-9)


def gradient(parameter: Tensor) -> Tensor:
    """Zeros where there is none, as for biases that a norm behind them takes off again."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def state(model: Method) -> dict[str, dict[str, Tensor]]:
    return {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in model.networks.items()}


def changed(model: Method, before: dict[str, dict[str, Tensor]]) -> set[str]:
    """The networks with a parameter that is not as it was."""
    return {
        name
        for name, net in model.networks.items()
        if any(not torch.equal(p, before[name][key]) for key, p in net.named_parameters())
    }


def resumed(model: Method, path: Path) -> Method:
    """Another model, made from a checkpoint of this one."""
    checkpoint.save(path, model, Schedule(model.optimizers, model.config), 1)
    other = type(model)(model.config)
    checkpoint.restore(checkpoint.read(path), other, Schedule(other.optimizers, other.config))
    return other


def discriminator_losses(
    gan: GANLoss, discriminator: nn.Module, real: Tensor, fake: Tensor, rng: torch.Generator
) -> dict[str, Tensor]:
    """All that discriminators are trained on: with wgangp the gradient penalty, too."""
    losses = discriminator_loss(gan, discriminator, real, fake)
    if gan.mode == "wgangp":
        losses["D_GP"] = gradient_penalty(discriminator, real, fake, share=draw_share(len(real), rng))
    return losses
