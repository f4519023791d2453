"""Gradients of several processes, averaged while the backward pass that makes them still runs.

A step takes several losses back one by one, so a gradient is final only in the last backward pass through its network.
The method names that one, and there gradients are sent to the other processes in buckets, each as soon as it is full:
the last layers' first. What no pass was named for is averaged before the update, in one go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from i2i import distributed

BUCKET = 4_000_000  # elements: 16 MB, which a network of 10 GB/s carries in 2 ms; a transfer begins in far less
_torch: Any = torch


def buckets(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The parameters from the last to the first, as a backward pass comes to them; each bucket of one dtype, and closed
    by the parameter with which it has BUCKET elements. A rule that hangs on nothing but the parameters, so that all
    processes have the same ones."""
    made: list[list[Tensor]] = []
    room = 0
    for parameter in reversed(list(parameters)):
        if room <= 0 or made[-1][-1].dtype != parameter.dtype:
            made.append([])
            room = BUCKET
        made[-1].append(parameter)
        room -= parameter.numel()
    return made


class Sent(NamedTuple):
    """A gradient on its way, or averaged."""

    network: str
    parameter: Tensor
    gradient: Tensor
    version: int  # of the gradient, which goes up with every change

    def check(self) -> None:
        if self.parameter.grad is not self.gradient or self.gradient._version != self.version:
            raise RuntimeError(
                f"a gradient of {self.network} changed after it was sent to the other processes: another backward pass "
                f"reached {self.network} after the one that was named as its last before the update"
            )


class Overlap:
    """Of the networks of one method, in two or more processes."""

    def __init__(self) -> None:
        self.under_way: list[tuple[distributed.Averaging, list[Sent]]] = []
        self.averaged: dict[int, Sent] = {}  # by the id of the parameter, until its update

    @contextmanager
    def last(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Around a backward pass, the last that gives these networks gradients before they are updated."""
        busy = self.averaged.keys() | {id(each.parameter) for _, sent in self.under_way for each in sent}
        parts = {name: buckets(network.parameters()) for name, network in networks.items()}
        for name, parameters in parts.items():
            if any(id(p) in busy for bucket in parameters for p in bucket):
                raise RuntimeError(f"a second backward pass was named as the last of {name} before its update")
        # Networks take turns: none of them waits for all of another.
        turns = zip_longest(*([(name, bucket) for bucket in found] for name, found in parts.items()))
        going = _Pass(self, [each for turn in turns for each in turn if each])
        try:
            yield
            going.send_rest()
        finally:
            going.remove_hooks()

    def send(self, network: str, bucket: Sequence[Tensor]) -> None:
        """Those of its parameters that have a gradient, which are the same ones in all processes."""
        for p in bucket:
            # Cut from one tensor with others (by `networks.batched_linear`), it would have one version with them.
            if p.grad is not None and p.grad.untyped_storage().nbytes() > p.grad.nbytes:
                p.grad = p.grad.data
        sent = [Sent(network, p, p.grad, p.grad._version) for p in bucket if p.grad is not None]
        if sent:
            self.under_way.append((distributed.Averaging([each.gradient for each in sent]), sent))

    def finish(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Before the update of these parameters: gradients that were sent become the means. Returns the others."""
        wanted, others = {id(p) for p in parameters}, []
        for averaging, sent in self.under_way:
            if wanted.isdisjoint(id(each.parameter) for each in sent):
                others.append((averaging, sent))
                continue
            for each in sent:
                each.check()
            averaging.finish()
            self.averaged |= {id(each.parameter): each._replace(version=each.gradient._version) for each in sent}
        self.under_way = others
        left = []
        for p in parameters:
            mean = self.averaged.pop(id(p), None)
            if mean is not None:
                mean.check()
            elif p.grad is not None:
                left.append(p.grad)
        return left


class _Pass:
    """One backward pass. A bucket is sent when its gradients are there and those before it are sent: in the same order
    everywhere, whatever order gradients come in."""

    def __init__(self, overlap: Overlap, parts: Sequence[tuple[str, Sequence[Tensor]]]):
        self.overlap, self.parts = overlap, parts
        self.sent = 0
        self.missing: list[int] | None = None
        # Nodes of a GPU run in its thread, but those that are given none may run in the one that called backward.
        self.lock = Lock()
        # Autograd's nodes that add to gradients. Their hooks are called for the very nodes that `arrived` counts: those
        # of the weights of `half_weights` too, whose gradients were added before and which are given none. The 78 of
        # CUT take 1.6 ms of a core in a step.
        self.nodes = [[get_gradient_edge(p).node for p in bucket if p.requires_grad] for _, bucket in parts]
        self.hooks = [
            node.register_hook(partial(self.arrived, part)) for part, nodes in enumerate(self.nodes) for node in nodes
        ]

    def arrived(self, part: int, *_: Any) -> None:
        with self.lock:
            if self.missing is None:
                # Which nodes the pass comes to is known during it alone. The others' gradients are final already.
                # (torch.autograd.graph.register_multi_grad_hook is made of this, but runs before the last addition.)
                runs = _torch._C._will_engine_execute_node
                self.missing = [sum(map(runs, nodes)) for nodes in self.nodes]
            self.missing[part] -= 1
            while self.sent < len(self.parts) and self.missing[self.sent] == 0:
                self.send_next()

    def send_next(self) -> None:
        self.overlap.send(*self.parts[self.sent])
        self.sent += 1

    def send_rest(self) -> None:
        """At the end of the pass: all, if it came to none of the nodes."""
        while self.sent < len(self.parts):
            self.send_next()

    def remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()
