"""What a call costs the host, with tensors so small that nothing else counts; and how many kernels the device runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

import kernels
from benchmarks.engine.measure import Timing, clock, device_kernels
from benchmarks.engine.work import Json
from benchmarks.proof.child import Answers
from benchmarks.proof.part import Asked, OutOfTime
from benchmarks.proof.processes import measured_apart
from kernels import backends
from kernels.nce.spec import Layer, Needs
from kernels.nce.spec import Spec as NceSpec
from kernels.norm.spec import ACTIVATIONS, INSTANCE
from kernels.norm.spec import Spec as NormSpec
from kernels.resample.spec import DOWN
from kernels.resample.spec import Spec as MapSpec

Tensor = torch.Tensor
CALLS = 40  # in a row, as in docs/cuda.md; far fewer than the driver takes before it lets the host wait
FIVE = "patch_nce_loss, five layers"
FORWARD, BOTH = "forward", "forward and backward"


class Timed(NamedTuple):
    name: str
    what: str  # FORWARD, BOTH, or of a launcher "launcher, forward" and the like
    call: Callable[[], object]


def run(asked: Asked, found: Json) -> None:
    measured_apart("launches", asked, found)


# ---- in the child ----------------------------------------------------------------------------------------------------


def measure(asked: Asked, out: Answers) -> None:
    chosen = backends.choose("auto", torch.empty(1, device=asked.device))
    out.set(impl=chosen, host_calls=CALLS, host_repeats=asked.sizes["repeats"])
    out.set(fill_us=fill_microseconds(asked.device))
    torch.manual_seed(0)
    for timed in [*public(asked.device), *launchers(asked.device)]:
        if time.monotonic() > asked.until:
            raise OutOfTime(f"before {timed.name}")
        grad = timed.what == BOTH
        row: Json = {"name": timed.name, "what": timed.what}
        with torch.set_grad_enabled(grad):
            row["host_us"] = host_microseconds(timed.call, asked.device, asked.sizes["repeats"])
            if asked.device.type == "cuda":
                row |= device_side(timed.call, asked.device)
        out.row("calls", row)


def fill_microseconds(device: torch.device) -> float:
    """Of one number, by the clock of the operator table: nothing in it is quicker, however small."""
    one = torch.ones(1, device=device)
    timing = Timing("fill", one.zero_)
    clock(device).prepare(timing)
    return 1e3 * min(timing.sample(timing.repetitions) for _ in range(5))


def host_microseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The least of some repeats. The device is waited for between them, and not inside."""
    best = float("inf")
    for _ in range(repeats + 1):  # the first one compiles
        wait(device)
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, (time.perf_counter() - start) / CALLS * 1e6)
    wait(device)
    return best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_side(call: Callable[[], object], device: torch.device) -> Json:
    """Kernels, copies and fills of one call. The first time the profiler may miss some: it loads its own library."""
    for _ in range(2):
        ran = device_kernels(call, device)
    return {"launches": len(ran), "kernels": [kernel.name[:80] for kernel in ran]} if ran else {}


def public(device: torch.device) -> Iterator[Timed]:
    """Calls as users make them, forward alone and with the backward; after each what stock torch takes, if it can."""

    def both(name: str, function: Callable[..., Tensor], *tensors: Tensor) -> Iterator[Timed]:
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
        wanted = [t for t in leaves if t.requires_grad]
        grad = torch.ones_like(function(*leaves))
        yield Timed(name, FORWARD, lambda: function(*tensors))
        yield Timed(name, BOTH, lambda: torch.autograd.grad(function(*leaves), wanted, grad))

    x, scale, shift = (torch.randn(*size, device=device) for size in ((1, 8, 16, 16), (8,), (8,)))
    ids = torch.randperm(256, device=device)[:16]
    yield Timed("torch.empty_like", FORWARD, lambda: torch.empty_like(x))
    yield from both(
        "torch: instance_norm, relu", lambda x, a, b: F.relu(F.instance_norm(x, None, None, a, b)), x, scale, shift
    )
    yield from both(
        "instance_norm, relu", lambda x, a, b: kernels.instance_norm(x, a, b, activation="relu"), x, scale, shift
    )
    yield from both("munit_layer_norm", kernels.munit_layer_norm, x, scale, shift)
    yield from both("adain", kernels.adain, x, torch.randn_like(x))
    yield from both("blur_downsample", kernels.blur_downsample, x)
    yield from both("reflection_pad2d", lambda x: kernels.reflection_pad2d(x, 1), x)
    yield from both("torch: reflection_pad2d", lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), x)
    yield from both("sample_patches", lambda x: kernels.sample_patches([x], ids=[ids])[0][0], x)
    yield from both("sinkhorn", lambda x: kernels.sinkhorn(x, 10), torch.randn(1, 16, 16, device=device))
    keys = [t.detach() for t in features(device)]
    yield from both(FIVE, lambda *q: kernels.patch_nce_loss(q, keys, normalize=True), *features(device))


def features(device: torch.device) -> list[Tensor]:
    return [torch.randn(1, 16, 32, device=device) for _ in range(5)]


def launchers(device: torch.device) -> Iterator[Timed]:
    """What is below the public functions: memory for the results, and the launch."""
    x = torch.randn(1, 8, 16, 16, device=device)
    scale, shift = torch.randn(8, device=device), torch.randn(8, device=device)
    chosen = backends.choose("auto", x)
    if chosen == "reference":
        return

    launch = backends.launcher("norm", chosen)
    spec = NormSpec(INSTANCE, 1e-5, 0.0, ACTIVATIONS.index("relu"), 0.2, 0)
    _, stats = launch.forward(x, scale, shift, None, spec)
    yield Timed("norm", "launcher, forward", lambda: launch.forward(x, scale, shift, None, spec))
    yield Timed("norm", "launcher, backward", lambda: launch.backward(x, x, scale, shift, stats, False, spec))

    maps = MapSpec(DOWN, (3, 0), (3, 0), 16, 16)
    yield Timed("resample", "launcher", lambda: backends.launcher("resample", chosen).apply(x, maps, False))
    ids = torch.randperm(256, device=device)[:16]
    yield Timed("patches", "launcher, forward", lambda: backends.launcher("patches", chosen).forward([x], [ids]))

    nce, options = backends.launcher("nce", chosen), NceSpec(0.07, True, False)
    layers = [Layer(q, k, None, None, None) for q, k in zip(features(device), features(device))]
    needs = [Needs(True, False, False, False)] * len(layers)
    loss, rows, units = nce.forward(layers, options, [True] * len(layers))
    yield Timed(FIVE, "launcher, forward", lambda: nce.forward(layers, options, [True] * len(layers)))
    grad = torch.ones_like(loss)
    yield Timed(FIVE, "launcher, backward", lambda: nce.backward(grad, layers, rows, units, needs, options))
