"""For the tests of single recognisers of kernels.fuse: a module before and after, and whether the operator ran."""

from __future__ import annotations

import copy

import torch


def taken_copy(room, module):
    taken = copy.deepcopy(module)
    assert room.looks_like(taken)
    assert room.take(taken) == "" and room.name_of(taken)
    return taken


def count_calls(monkeypatch, room, name):
    """A list that grows with every call of the operator by `room`."""
    seen = []
    operator = getattr(room, name)
    monkeypatch.setattr(room, name, lambda *args, **options: seen.append(args) or operator(*args, **options))
    return seen


def results(call, module, inputs):
    """Output, and gradients of the inputs and of every parameter, for a random gradient of the output."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    y = call(module, *inputs)
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(y.dtype)
    grads = torch.autograd.grad(y, [*inputs, *module.parameters()], g)
    return {str(i): t for i, t in enumerate([y.detach(), *grads])}


def check_equal(got, want, tolerance=1e-12):
    for name, t in want.items():
        torch.testing.assert_close(got[name], t, rtol=tolerance, atol=tolerance)


def attributes(module):
    """Everything that hangs at a module and at what is in it, by identity."""
    return [
        (name, type(m), {key: id(v) for d in (vars(m), m._parameters, m._buffers, m._modules) for key, v in d.items()})
        for name, m in module.named_modules()
    ]
