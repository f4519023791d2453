"""i2i.methods.overlap by itself, in one process: what is sent, when, and what must not change afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from support.graph_stand_ins import TapeRecorder
from torch import Tensor, nn

from benchmarks.zoo import batch
from i2i import distributed, graphs
from i2i.graphs import Graphs
from i2i.methods import METHODS, Method, overlap
from i2i.methods.overlap import Overlap, buckets


class Doubling:
    """In place of the mean over processes, so that each average shows."""

    begun: list[list[Tensor]] = []

    def __init__(self, gradients: Sequence[Tensor]):
        self.gradients = gradients
        self.begun.append(list(gradients))

    def finish(self) -> None:
        for gradient in self.gradients:
            gradient.mul_(2)


@pytest.fixture(autouse=True)
def doubling(monkeypatch):
    monkeypatch.setattr(distributed, "Averaging", Doubling)
    monkeypatch.setattr(Doubling, "begun", [])
    monkeypatch.setattr(overlap, "BUCKET", 4)


class Chain(nn.Module):
    """Multiplies by its weights of 4 elements, one after the other; in `order`, and not by those left out."""

    def __init__(self, count: int, order: Sequence[int] | None = None):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.full((4,), 2.0)) for _ in range(count))
        self.order = range(count) if order is None else order

    def forward(self, x: Tensor) -> Tensor:
        for i in self.order:
            x = x * self.weights[i]
        return x


def last(over: Overlap, **networks: nn.Module) -> AbstractContextManager[None]:
    return over.last(networks)


def backward(*networks: nn.Module) -> None:
    x = torch.ones(4)
    for network in networks:
        x = network(x)
    x.sum().backward()


def sent(*networks: nn.Module) -> list[list[str]]:
    """What was, by network and number of the weight."""
    names = {id(p.grad): f"{n}{i}" for n, net in enumerate(networks) for i, p in enumerate(net.parameters())}
    return [[names[id(gradient)] for gradient in gradients] for gradients in Doubling.begun]


def test_buckets_go_from_the_last_parameter_to_the_first():
    sizes = [3, 1, 9, 2, 1, 0, 1, 1]
    parameters = [torch.empty(size) for size in sizes]
    assert [[p.numel() for p in bucket] for bucket in buckets(parameters)] == [[1, 1, 0, 1, 2], [9], [1, 3]]
    parameters[6] = parameters[6].double()
    assert [[p.numel() for p in bucket] for bucket in buckets(parameters)] == [[1], [1], [0, 1, 2, 9], [1, 3]]
    assert buckets([]) == []


def test_each_bucket_is_sent_as_soon_as_it_is_there():
    net, over, seen = Chain(3), Overlap(), []
    for i, p in enumerate(net.weights):
        p.register_post_accumulate_grad_hook(lambda _, i=i: seen.append((i, len(Doubling.begun))))
    with last(over, net=net):
        backward(net)
    assert seen == [(2, 0), (1, 1), (0, 2)] and sent(net) == [["02"], ["01"], ["00"]]


def test_the_order_is_fixed_whatever_order_gradients_come_in():
    net, over, seen = Chain(3, order=(2, 1, 0)), Overlap(), []
    for i, p in enumerate(net.weights):
        p.register_post_accumulate_grad_hook(lambda _, i=i: seen.append((i, len(Doubling.begun))))
    with last(over, net=net):
        backward(net)
    assert seen == [(0, 0), (1, 0), (2, 0)] and sent(net) == [["02"], ["01"], ["00"]]


def test_networks_take_turns():
    one, two, over = Chain(3), Chain(2), Overlap()
    with last(over, one=one, two=two):
        backward(one, two)
    assert sent(one, two) == [["02"], ["11"], ["01"], ["10"], ["00"]]


def test_gradients_of_earlier_passes_are_sent_and_missing_ones_are_not():
    net, over = Chain(4, order=(0, 1, 2)), Overlap()  # never the last weight
    backward(net)
    net.order = (1,)
    with last(over, net=net):
        backward(net)
    assert sent(net) == [["02"], ["01"], ["00"]]
    assert over.finish(list(net.parameters())) == []
    wanted = [2 * 4.0, 2 * (4.0 + 1.0), 2 * 4.0]
    assert [float(p.grad[0]) for p in net.weights[:3]] == wanted and net.weights[3].grad is None


def test_nothing_is_sent_of_what_has_no_gradient():
    net, over = Chain(2), Overlap()
    with last(over, net=net):
        backward(Chain(2))
    assert over.finish(list(net.parameters())) == [] and not Doubling.begun


def test_frozen_weights_and_zeros():
    """A gradient that is there without a backward pass, as MatchGAN's zeros, is one of all processes."""
    net, over = Chain(3), Overlap()
    net.weights[1].requires_grad_(False)
    net.weights[1].grad = torch.zeros(4)
    with last(over, net=net):
        backward(net)
    assert sent(net) == [["02"], ["01"], ["00"]]


def test_what_no_pass_was_named_for_is_left_to_the_update():
    one, two, over = Chain(2), Chain(2), Overlap()
    with last(over, one=one):
        backward(one, two)
    parameters = [*one.parameters(), *two.parameters()]
    left = over.finish(parameters)
    assert [id(gradient) for gradient in left] == [id(p.grad) for p in two.parameters()]
    assert [id(gradient) for gradient in over.finish(parameters)] == [id(p.grad) for p in parameters]  # the next update


def test_a_network_of_two_optimizers():
    """A bucket is awaited by the first of them, and its other gradients are watched until their own update."""
    net, over = Chain(2), Overlap()
    one, two = net.parameters()
    overlap.BUCKET = 8
    for changes in (False, True):
        one.grad = two.grad = None
        with last(over, net=net):
            backward(net)
        assert over.finish([one]) == [] and float(two.grad[0]) == 4.0
        if changes:
            two.grad.add_(1)
            with pytest.raises(RuntimeError, match="a gradient of net changed"):
                over.finish([two])
        else:
            assert over.finish([two]) == [] and float(two.grad[0]) == 4.0


@pytest.mark.parametrize("how", ["backward", "in place", "none", "another"])
def test_a_gradient_that_changes_after_it_was_sent(how):
    net, over = Chain(2), Overlap()
    with last(over, net=net):
        backward(net)
    weight: Any = net.weights[0]
    if how == "backward":
        backward(net)
    elif how == "in place":
        weight.grad.mul_(2)
    else:
        weight.grad = None if how == "none" else weight.grad.clone()
    with pytest.raises(RuntimeError, match="a gradient of net changed after it was sent to the other processes"):
        over.finish(list(net.parameters()))


def test_gradients_that_are_parts_of_one_tensor():
    """Each is watched for itself, though in-place changes of one would count for all."""
    for changes in (False, True):
        net, over = Chain(2), Overlap()
        for p, part in zip(net.parameters(), torch.zeros(2, 4).unbind()):
            p.grad = part
        with last(over, net=net):
            backward(net)
        if changes:
            net.weights[0].grad.add_(1)
            with pytest.raises(RuntimeError, match="a gradient of net changed"):
                over.finish(list(net.parameters()))
        else:
            assert over.finish(list(net.parameters())) == []
            assert [float(p.grad[0]) for p in net.parameters()] == [4.0, 4.0]


def test_two_passes_named_as_the_last():
    net, other, over = Chain(2), Chain(1), Overlap()
    with last(over, net=net):
        backward(net)
    with pytest.raises(RuntimeError, match="a second backward pass was named as the last of net before its update"):
        with last(over, other=other, net=net):
            backward(net)
    over.finish(list(net.parameters()))
    with last(over, net=net):
        backward(net)


def test_a_pass_around_two_backward_passes_is_no_wrong_average():
    net, over = Chain(2), Overlap()
    with last(over, net=net):
        backward(net)
        backward(net)
    with pytest.raises(RuntimeError, match="a gradient of net changed"):
        over.finish(list(net.parameters()))


def test_hooks_of_two_threads(monkeypatch):
    """As on a GPU. While one sends, the other's bucket waits, and none is sent twice."""
    net, over = Chain(2), Overlap()
    backward(net)
    parts = [("net", [net.weights[1]]), ("net", [net.weights[0]])]
    going = overlap._Pass(over, parts)
    going.missing = [1, 1]
    sending, send = threading.Event(), over.send

    def slow(*given: Any) -> None:
        sending.set()
        time.sleep(0.05)
        send(*given)

    monkeypatch.setattr(over, "send", slow)
    one = threading.Thread(target=going.arrived, args=(0,))
    one.start()
    sending.wait()
    going.arrived(1)
    one.join()
    assert sent(net) == [["01"], ["00"]]


def test_a_backward_pass_that_fails_leaves_no_hooks():
    net, over = Chain(2), Overlap()
    y = net(torch.ones(4)).sum()
    with pytest.raises(ValueError, match="no"), last(over, net=net):
        raise ValueError("no")
    y.backward()
    assert not Doubling.begun


NARROW = {"crop_size": 32, "load_size": 32, "ngf": 4, "ndf": 4, "generator": "resnet_1blocks", "precision": "bfloat16"}


def cyclegan() -> Method:
    return METHODS["cyclegan"](METHODS["cyclegan"].Config(**NARROW))


def test_one_process_has_no_hooks(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a hook")

    monkeypatch.setattr(overlap, "_Pass", refuse)
    model = cyclegan()
    model.step(*batch(model.config))
    assert not Doubling.begun
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(AssertionError, match="a hook"):
        model.step(*batch(model.config))


def test_where_steps_are_recorded_averages_are_taken_between_graphs(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(graphs, "EAGER_CALLS", 1)
    given = []
    monkeypatch.setattr(distributed, "average_gradients", lambda gradients: given.append(len(gradients)))
    model = cyclegan()
    model.use_graphs(Graphs(model.device, recorder=TapeRecorder()))
    assert not model.overlapping
    for _ in range(3):
        model.step(*batch(model.config))
    (recording,) = model.graphs.recordings.values()
    assert recording.graphs() == 4  # around two updates and the image pool
    counts = [
        sum(p.grad is not None for side in "AB" for p in model.networks[f"{x}_{side}"].parameters()) for x in "GD"
    ]
    assert min(counts) > 0 and given == 3 * counts and not Doubling.begun
