"""Where the time of a training step on a CPU goes, by kind of work: the self time of every operator that torch's
profiler saw, and of the launchers of ours, which are marked for it.

What a convolution does inside oneDNN, changes of layout included, is its own; a copy that torch makes for it is a copy.
"""

from __future__ import annotations

import contextlib
import resource
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

from benchmarks.engine.work import Json
from benchmarks.systems.child import is_convolution
from benchmarks.systems.launch_rules import MATMULS
from kernels import backends
from kernels._build import ROOMS
from kernels.resample.spec import PAD

CONVOLUTIONS, PRODUCTS, NORMS, RESAMPLE, PADDING = "convolutions", "matrix products", "norm", "resample", "padding"
PATCHES, NCE, SINKHORN, ACTIVATIONS = "patches", "nce", "sinkhorn", "activations"
ADDITIONS, COPIES, FILLS, OPTIMISER = "gradient additions", "copies and casts", "fills", "optimiser"
ARITHMETIC, OVERHEAD = "other arithmetic", "Python, autograd, dispatch"
KINDS = (
    *(CONVOLUTIONS, PRODUCTS, NORMS, RESAMPLE, PADDING, PATCHES, NCE, SINKHORN, ACTIVATIONS),
    *(ADDITIONS, COPIES, FILLS, OPTIMISER, ARITHMETIC, OVERHEAD),
)
MARK = "ours: "  # begins the name of a launcher of ours

# Operators of torch by parts of their names, the first kind that fits.
NAMES = {
    OPTIMISER: ("_fused_adam", "_foreach_lerp"),
    ADDITIONS: ("_foreach_add",),  # of copies' gradients to those of the weights, where weights are in 16 bits
    NORMS: ("instance_norm", "batch_norm", "group_norm", "layer_norm", "var_mean"),
    PADDING: ("reflection_pad", "replication_pad", "::pad"),
    RESAMPLE: ("upsample",),
    ACTIVATIONS: ("relu", "tanh", "threshold", "sigmoid"),
    FILLS: ("::zero", "::fill_", "::ones"),
    PATCHES: ("::index", "::_index_put"),
    COPIES: ("::copy_", "_foreach_copy", "::cat", "::clone", "::_to_copy", "::stack"),
}
# What only makes tensors, or other names for them, or looks at one: none of it is arithmetic. By how they begin.
FREE = ("empty", "resize", "unsafe_view", "view", "reshape", "detach", "select", "slice", "narrow", "split", "chunk")
FREE += ("as_strided", "expand", "transpose", "permute", "alias", "squeeze", "unsqueeze", "set", "contiguous")
FREE += ("flatten", "item", "local_scalar_dense", "is_nonzero", "lift", "resolve", "result_type")


def profiled(step: Callable[[], object]) -> Json:
    """{"kinds": {kind: seconds}, "seconds": their sum, "page_faults": of the process meanwhile} of one call."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with marked(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with torch.profiler.record_function("step"):
            step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    kinds: Counter[str] = Counter()
    for event in profile.events() or ():
        kinds[kind_of(event)] += event.self_cpu_time_total / 1e6
    found = {kind: kinds[kind] for kind in KINDS if kinds[kind]}
    return {"kinds": found, "seconds": sum(found.values()), "page_faults": faults}


def kind_of(event: Any) -> str:
    """Of an event of the profiler, by its name, and by the operator it is a part of."""
    name, parent = event.name, event.cpu_parent
    if name.startswith(MARK):
        return name.removeprefix(MARK)
    if not name.startswith("aten::"):  # the engine, nodes of autograd, optimisers' own
        return OVERHEAD
    above = "" if parent is None else parent.name
    if above.startswith("Optimizer."):
        return OPTIMISER
    if above.startswith(("autograd::", "torch::")) and name in ("aten::add", "aten::add_"):
        return ADDITIONS  # by the engine itself: gradients that meet
    for kind, parts in NAMES.items():
        if any(part in name for part in parts):
            return kind
    if is_convolution(name):
        return CONVOLUTIONS
    plain = name.removeprefix("aten::").strip("_")
    if plain in MATMULS or plain in ("matmul", "linear"):
        return PRODUCTS
    if plain.startswith(FREE) or plain in ("t", "to"):
        return OVERHEAD
    whole = kind_of(parent) if above.startswith("aten::") else OVERHEAD
    return ARITHMETIC if whole == OVERHEAD else whole


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """Inside, launchers of ours for the CPU show in the profiler by their kind."""
    with contextlib.ExitStack() as stack:
        for room in ROOMS:
            launchers = backends.launcher(room, "cpu")
            for name, function in vars(launchers).copy().items():
                if isinstance(function, types.FunctionType) and function.__module__ == launchers.__name__:
                    if not name.startswith("_"):
                        stack.enter_context(mock.patch.object(launchers, name, _marking(room, function)))
        yield


def _marking(room: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **options: Any) -> Any:
        kind = PADDING if room == RESAMPLE and given[1].kind == PAD else room
        with torch.profiler.record_function(MARK + kind):
            return function(*given, **options)

    return call


def quickest(rounds: Sequence[Json]) -> Json:
    """Of the profiles of several steps the one that others disturbed least."""
    return min(rounds, key=lambda found: found["seconds"])
