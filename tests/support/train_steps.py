"""What test_distributed.py asks of processes that train together, each in a fork of train_forks.py: functions whose
answers are JSON. BUCKET is small here, for small networks to have several."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.zoo import batch
from i2i import distributed
from i2i.methods import METHODS, Method, half_weights, overlap


def build(method: str, settings: dict[str, Any], bucket: int) -> Method:
    overlap.BUCKET = bucket
    torch.manual_seed(0)
    return METHODS[method](METHODS[method].Config(**settings))


def step(model: Method, number: int) -> None:
    """On images of this process's own."""
    images, *more = batch(model.config)
    model.step(images * (1 - 0.1 * number - 0.05 * distributed.rank()), *more)


def not_overlapping(model: Method) -> None:
    model.__class__ = type("Afterwards", (type(model),), {"overlapping": False})


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


def average_afterwards(gradients: list[Tensor]) -> None:
    """All of an optimiser's in one transfer: what overlapping must give the bits of."""
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view(gradient.shape))


def state(model: Method) -> dict[str, Tensor]:
    found = {f"{name}.{key}": t for name, net in model.networks.items() for key, t in net.state_dict().items()}
    for name, optimizer in model.optimizers.items():
        for i, of_parameter in optimizer.state_dict()["state"].items():
            found |= {f"{name}.{i}.{key}": t for key, t in of_parameter.items()}
    return found


def same_bits(method: str, settings: dict[str, Any], bucket: int, steps: int) -> dict[str, Any]:
    """Of steps with gradients averaged meanwhile and afterwards: what differs, how many transfers each made, and how
    many gradients the first left for afterwards."""
    transfers, left = [], [0]

    def leftovers(gradients: list[Tensor]) -> None:
        left[0] += len(gradients)
        average_afterwards(gradients)

    for overlapping in (True, False):
        model = build(method, settings, bucket)
        count, begin = [0], dist.all_reduce

        def counted(*given: Any, **options: Any) -> Any:
            count[0] += 1
            return begin(*given, **options)

        with replaced(dist, "all_reduce", counted):
            if not overlapping:
                not_overlapping(model)
            then = leftovers if overlapping else average_afterwards
            with replaced(distributed, "average_gradients", then):
                for number in range(steps):
                    step(model, number)
            if overlapping:
                meanwhile = state(model)
        transfers.append(count[0])
    afterwards = state(model)
    assert meanwhile.keys() == afterwards.keys()
    differ = [name for name, t in meanwhile.items() if not torch.equal(t, afterwards[name])]
    # One number of all weights, for processes to compare; buffers are everyone's own.
    total = float(sum(p.double().abs().sum() for net in model.networks.values() for p in net.parameters()))
    return {"differ": differ, "transfers": transfers, "left": left[0], "total": total, "compared": len(meanwhile)}


def events(method: str, settings: dict[str, Any], bucket: int) -> list[list[str]]:
    """In the order in which they came in one step: ["last", networks] when a backward pass is named so, ["gradient",
    parameter] when one was added to, ["sent", parameters] for a bucket, ["end"] of such a pass."""
    model = build(method, settings, bucket)
    seen: list[list[str]] = []
    names = {id(p): f"{n}.{key}" for n, net in model.networks.items() for key, p in net.named_parameters()}
    for net in model.networks.values():
        for p in net.parameters():
            p.register_post_accumulate_grad_hook(lambda p: seen.append(["gradient", names[id(p)]]))
    add, send, last = half_weights.add_gradients, model.overlap.send, model.overlap.last

    def added(pairs: list[tuple[Tensor, Tensor]]) -> None:
        add(pairs)
        seen.extend(["gradient", names[id(weight)]] for weight, _ in pairs)

    def sent(network: str, bucket: list[Tensor]) -> None:
        send(network, bucket)
        seen.append(["sent", *(names[id(p)] for p in bucket)])

    @contextmanager
    def told(networks: dict[str, Any]) -> Iterator[None]:
        seen.append(["last", *networks])
        with last(networks):
            yield
        seen.append(["end"])

    model.overlap.last, model.overlap.send = told, sent
    with replaced(half_weights, "add_gradients", added):
        step(model, 0)
    return seen


def planted(method: str, settings: dict[str, Any], network: str) -> str:
    """What is said of a gradient that changes after its last backward pass."""
    model = build(method, settings, 2000)
    update = model.update

    def changing(*names: str) -> None:
        if network in names:
            next(model.networks[network].parameters()).grad.mul_(2)
        update(*names)

    model.update = changing
    try:
        step(model, 0)
    except RuntimeError as error:
        return str(error)
    return "nothing"


class Network:
    """Carries one transfer at a time, and takes its time for each."""

    def __init__(self, seconds_per_element: float):
        self.seconds, self.waited = seconds_per_element, 0.0
        self.given: queue.SimpleQueue[tuple[Any, float, threading.Event]] = queue.SimpleQueue()
        self.begin = dist.all_reduce
        threading.Thread(target=self.carry, daemon=True).start()

    def carry(self) -> None:
        while True:
            work, seconds, arrived = self.given.get()
            work.wait()  # for the other process to begin, too
            time.sleep(seconds)
            arrived.set()

    def all_reduce(self, flat: Tensor, async_op: bool) -> Any:
        arrived = threading.Event()
        self.given.put((self.begin(flat, async_op=async_op), self.seconds * flat.numel(), arrived))

        def wait() -> None:
            began = time.monotonic()
            arrived.wait()
            self.waited += time.monotonic() - began

        return SimpleNamespace(wait=wait)


def waiting(method: str, settings: dict[str, Any], bucket: int, share: float) -> dict[str, list[float]]:
    """[seconds that a process waits for its gradients, of seconds that a step takes] with a network that needs `share`
    of the time of a step without it to carry the gradients of one; averaged meanwhile and afterwards."""
    found, seconds = {}, 0.0
    for name in ("meanwhile", "afterwards"):
        model = build(method, settings, bucket)
        if name == "afterwards":
            not_overlapping(model)
        step(model, 0)
        if not seconds:
            began = time.monotonic()
            step(model, 0)
            seconds = share * min(distributed.gather(time.monotonic() - began))
        elements = sum(p.numel() for net in model.networks.values() for p in net.parameters())
        network = Network(seconds / elements)
        with replaced(dist, "all_reduce", network.all_reduce):
            began = time.monotonic()
            step(model, 1)
            found[name] = [network.waited, time.monotonic() - began]
    return found | {"network": [seconds]}


def one_differs(method: str, settings: dict[str, Any], how: str, seconds: float) -> str:
    """What a process sees in a step when the other one "ends", "waits" elsewhere, or has not all gradients, "fewer"."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), dist.distributed_c10d._get_default_group())
    model = build(method, settings, 2000)
    if distributed.rank() == 1:
        if how != "fewer":
            time.sleep(3 * seconds if how == "waits" else 0)
            return ""
        send = model.overlap.send
        model.overlap.send = lambda network, bucket: send(network, bucket[1:])
    try:
        step(model, 0)
    except RuntimeError as error:
        assert distributed.lost(error), str(error)
        return str(error)
    return "nothing"
