"""A step with a line of ours against the step as published: in float64 before anything is timed; and the first timed
step of every contestant against float64, by the error that stock itself has in that precision."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.engine.gate import FACTOR, WIDEST
from benchmarks.engine.work import Json
from benchmarks.outside.driven import Driven
from benchmarks.outside.lines import BFLOAT16, FLOAT32, KEPT, LINES, STOCK
from benchmarks.systems.turns import LIMITS, LOSS_LIMITS, distance

STEPS = 3
# Of the distance of a network's first gradients from float64, what no training run can tell. Added to twice stock's own
# error, which is 1e-7 to 4e-3 in float32 and 1e-2 to 4e-1 in bfloat16 (CUT, CycleGAN, MUNIT).
FLOOR = {FLOAT32: 1e-3, BFLOAT16: 5e-2}
NORMS = torch.nn.modules.instancenorm._InstanceNorm
EXACT = 1e-10  # relative, in float64: losses and gradients of the first step
# Losses and weights after all steps: a gradient that vanishes, as that of a bias before a norm does, is rounding, and
# Adam, whose epsilon is 1e-8, makes up to 1e8 times as much of it. In CUT 1e-14 became 1e-10 of a loss, 4e-10 of
# weights.
AFTER = 1e-8
State = dict[str, dict[str, torch.Tensor]]
Vectors = dict[str, torch.Tensor]


class Comparison:
    """Commands of a process: `stock` first, then `line` for each line. All steps are float64, from one set of weights.

    make: builds the trainer, always the same. initial: the file for the weights that all begin with.
    """

    def __init__(self, make: Callable[[], Driven], initial: Path):
        self.make, self.initial = make, initial
        self.networks: dict[str, torch.nn.Module] = {}
        self.device = torch.device("cpu")

    def stock(self, gradients: str) -> Json:
        """Its losses; the gradients of its first step go into a file, a vector per network."""
        driven = self.make()
        torch.save(driven.state(), self.initial)
        mend_torch(driven)
        self.exact, self.losses, self.end = self._steps(driven)
        torch.save(self.exact, gradients)
        return {"losses": self.losses[0], "networks": list(driven.networks)}

    def unmended(self) -> Json:
        """How far the first gradients of stock as it is are from those with torch's instance norm mended."""
        driven = self.make()
        driven.load(torch.load(self.initial))
        driven.double()
        driven.step(*driven.batch)
        return {"distance": self._distances(driven.gradients())}

    def own(self, precision: str) -> Json:
        """Stock's own error in this precision: of the first step's losses and gradients."""
        driven = self.make()
        driven.load(torch.load(self.initial))
        mend_torch(driven)
        driven.autocast = precision == BFLOAT16
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as the first step of those that are timed
            found = driven.step(*driven.batch)
        losses = {name: float(loss.detach()) for name, loss in found.items()}
        return {"losses": loss_distance(losses, self.losses[0]), "gradients": self._distances(driven.gradients())}

    def line(self, name: str) -> Json:
        """How far its losses, gradients and weights are from stock's, whether checkpoints can be exchanged, what fuse
        reports of each network; and why that fails, if it does."""
        driven = self.make()
        driven.load(torch.load(self.initial))
        gradients, losses, end = self._steps(driven, name)
        found = {
            "losses": loss_distance(losses[0], self.losses[0]),
            "later_losses": max(map(loss_distance, losses, self.losses)),
            "gradients": self._distances(gradients),
            "weights": {net: state_distance(end[net], want) for net, want in self.end.items()},
            "checkpoints": self.exchange(driven, end),
            "report": {
                net: str(module.fuse_report)
                for net, module in driven.networks.items()
                if hasattr(module, "fuse_report")
            },
        }
        return found | {"reason": why(found)}

    def _steps(self, driven: Driven, line: str | None = None) -> tuple[Vectors, list[dict[str, float]], State]:
        driven.double()
        if line is not None:
            LINES[line].apply(driven)
        gradients, losses = {}, []
        for step in range(STEPS):
            found = driven.step(*driven.batch)
            losses.append({name: float(loss.detach()) for name, loss in found.items()})
            gradients = gradients if step else driven.gradients()
        return gradients, losses, driven.state()

    def _distances(self, gradients: Vectors) -> dict[str, float]:
        return {net: distance(gradients[net].double(), want) for net, want in self.exact.items()}

    def exchange(self, driven: Driven, own: State) -> str:
        """Empty where stock's checkpoint can be loaded into `driven` and that one's `own` into a stock trainer, with
        the same keys and values; else what is wrong."""
        stock = self.make()
        stock.double()
        for into, given, said in ((driven, self.end, "stock's into ours"), (stock, own, "ours into stock")):
            try:
                into.load(through_a_file(given))
            except (RuntimeError, KeyError) as error:
                return f"{said}: {error}".splitlines()[0]
            if wrong := different(into.state(), given):
                return f"{said}: {wrong}"
        return ""


def mend_torch(driven: Driven) -> None:
    """torch 2.13's instance norm returns a wrong gradient on the CPU at batch 1 where the incoming one is channels last
    (docs/numerics.md), and the published CUT sends it such ones. Here it gets contiguous ones."""
    for net in driven.networks.values():
        for module in net.modules():
            if isinstance(module, NORMS):
                module.register_forward_hook(_contiguous_gradient)


def _contiguous_gradient(module: torch.nn.Module, given: object, result: torch.Tensor) -> None:
    if result.requires_grad:
        result.register_hook(torch.Tensor.contiguous)


def through_a_file(state: State) -> State:
    held = io.BytesIO()
    torch.save(state, held)
    held.seek(0)
    return torch.load(held)


def different(got: State, want: State) -> str:
    """The first key or value in which they differ; empty where they do not."""
    for net, values in want.items():
        if list(got[net]) != list(values):
            return f"keys of {net}"
        for key, value in values.items():
            if got[net][key].dtype != value.dtype or not torch.equal(got[net][key], value):
                return f"{net}.{key}"
    return ""


def state_distance(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> float:
    """Of all that `want` holds, as one vector. Infinite where something is missing."""
    if not set(want) <= set(got):
        return math.inf
    vectors = [torch.cat([state[key].flatten().double() for key in want]) for state in (got, want)] if want else []
    return distance(*vectors) if vectors else 0.0


def loss_distance(got: Mapping[str, float], want: Mapping[str, float]) -> float:
    """The largest, relative to the loss or, of a small one, to 0.1. Infinite where the names differ."""
    if set(got) != set(want):
        return math.inf
    found = [abs(got[name] - value) / max(abs(value), 0.1) for name, value in want.items()]
    return max(found) if all(map(math.isfinite, found)) else math.inf


def why(found: Json) -> str:
    """What of a comparison in float64 is too far off, or cannot be exchanged; empty where nothing is."""
    off = [f"losses: {found['losses']:.2g}"] if not found["losses"] <= EXACT else []
    off += [f"gradients of {net}: {value:.2g}" for net, value in found["gradients"].items() if not value <= EXACT]
    off += [f"losses after {STEPS} steps: {found['later_losses']:.2g}"] * (not found["later_losses"] <= AFTER)
    off += [f"weights of {net}: {value:.2g}" for net, value in found["weights"].items() if not value <= AFTER]
    return "; ".join(off + [f"checkpoints: {found['checkpoints']}"] * bool(found["checkpoints"]))


def judge(
    row: Json, gradients: Vectors, oracle: Vectors, losses: Mapping[str, float], precision: str, own: Json
) -> None:
    """Adds to a timed contestant's row how far its first gradients are from float64; marks the row where they, or its
    losses, are further away than the error rule allows. own: stock's errors in this precision, or its `error`.

    What stock itself is, is not judged: it is what was published.
    """
    row["gradient_distance"] = {net: distance(gradients[net].double(), want) for net, want in oracle.items()}
    row["loss_distance"] = loss_distance(row["losses"], losses)
    if row["line"] in (STOCK, KEPT):
        return
    floor, off = FLOOR[precision], []
    for net, value in row["gradient_distance"].items():
        limit = LIMITS[precision] if "error" in own else min(FACTOR * own["gradients"][net] + floor, WIDEST)
        if not value <= limit:
            off.append(f"gradients of {net}: {value:.2g} from float64, limit {limit:.2g}")
    limit = max(LOSS_LIMITS[precision], 0.0 if "error" in own else FACTOR * own["losses"])
    if not row["loss_distance"] <= limit:
        off.append(f"losses: {row['loss_distance']:.2g} from float64, limit {limit:.2g}")
    if off:
        row |= {"status": "FAIL", "reason": "; ".join(off)}
