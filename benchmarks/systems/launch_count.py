"""Launches of one training step by kind: those that torch's profiler saw on a GPU, or an estimate by rules without one.

The estimate runs the step on CPU tensors and computes next to nothing. A dispatch mode sees every operator of torch,
counts it by launch_rules.py and gives it an empty result of the right shape and memory format; and in the place of a
CUDA driver stands a device that is only described, whose launches count and do nothing, so what our operators launch is
their own launchers' choice.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.engine.measure import Kernel, device_kernels
from benchmarks.systems.child import is_convolution
from benchmarks.systems.launch_rules import (
    ADDITIONS,
    CASTS,
    CONVOLUTIONS,
    COPIES,
    OPTIMISER,
    OTHERS,
    PRODUCTS,
    launches,
)
from i2i.networks import convolution
from kernels import _cuda, backends
from kernels._build import ROOMS
from kernels._layout import is_channels_last
from kernels.patches import ownership

H100 = _cuda.Device(0, "sm_90", 132, 232448, 8)  # what launchers are told without a GPU


class Counts:
    """Launches by kind, and by operator or kernel."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.names: Counter[str] = Counter()

    def add(self, kind: str, name: str, count: int = 1) -> None:
        if count:
            self.kinds[kind] += count
            self.names[name] += count


def count(build: Callable[[], tuple[Any, Sequence[Tensor], int]], device: torch.device) -> tuple[Counts, int]:
    """(launches of the steps after the first, how many steps that are) of what `build` makes: (model, batch, steps at a
    time), the model on `device`."""
    counts = Counts()
    with our_launches(counts, stand_in=device.type != "cuda"):
        model, batch, steps = build()
        if device.type == "cuda":
            _profiled(model, batch, steps, counts, device)
        else:
            _estimated(model, batch, steps, counts)
    return counts, steps


# ---- our operators ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def our_launches(counts: Counts, stand_in: bool) -> Iterator[None]:
    """Launches of our CUDA kernels inside count as kind and name of their room. stand_in: on CPU tensors, for a device
    that is only described, and without running any."""
    make = _cuda.launch

    def counting(room: str, header: str, function: str, *given: Any) -> _cuda.Launch:
        launch = None if stand_in else make(room, header, function, *given)
        name = function.partition("<")[0]

        def call(stream: int, *addresses: int) -> None:
            counts.add(room, name)
            if launch is not None:
                launch(stream, *addresses)

        return call

    replaced: dict[str, Any] = {"launch": counting}
    if stand_in:
        replaced |= {"emulating": lambda: True, "why_not": lambda index=0: ""}
        replaced |= {"device": lambda index: H100, "stream": lambda index: 0}
    with contextlib.ExitStack() as stack:
        stack.callback(_forget)
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(_cuda, name, function))
        if stand_in:  # what is chosen on a GPU, whose maps are channels last and where all convolutions are cuDNN's
            stack.enter_context(mock.patch.object(convolution, "by_products", lambda *_: False))
            stack.enter_context(mock.patch.dict(os.environ, KERNELS_IMPL="cuda"))
            stack.enter_context(mock.patch.object(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512"))
        _forget()
        ownership.prepare()  # which it would put off while a dispatch mode looks on
        yield


def _forget() -> None:
    """Plans hold launches, and choices the device they were made for."""
    backends._chosen.clear()
    for room in ROOMS:
        backends.launcher(room, "cuda")._plans.clear()


# ---- an estimate -----------------------------------------------------------------------------------------------------


def _estimated(model: Any, batch: Sequence[Tensor], steps: int, counts: Counts) -> None:
    found = model.optimizers
    for optimizer in found.values() if isinstance(found, dict) else found:
        for group in optimizer.param_groups:
            group["foreach"] = not group["fused"]  # as torch chooses on CUDA
    with Estimate(counts):
        _steps(model, batch, steps)  # the first: optimisers make their state
        counts.kinds.clear()
        counts.names.clear()
        _steps(model, batch, steps)


def _steps(model: Any, batch: Sequence[Tensor], count: int) -> None:
    for _ in range(count):
        model.step(*batch)


class Estimate(TorchDispatchMode):
    """Counts what operators would launch on CUDA. Results of floating dtype are empty, but for changes in place."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        backward = torch._C._current_graph_task_id() != -1
        kind, number = launches(func, args, kwargs, backward)
        name = str(func).removeprefix("aten.").removesuffix(".default")
        self.counts.add(kind, f"{name} {_dtypes(args, kwargs)}" if kind == CASTS else name, number)
        return _empty_result(func, args, kwargs) if _is_arithmetic(func, args, kwargs) else func(*args, **kwargs)


def _dtypes(args: Any, kwargs: Any) -> str:
    """Of a cast."""
    given = [t.dtype for t in tree_leaves(args) if isinstance(t, Tensor)]
    source, to = (given[0], kwargs["dtype"]) if "dtype" in kwargs else (given[-1], given[0])
    return f"{source} to {to}".replace("torch.", "")


def _is_arithmetic(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether results are new tensors of floating dtype made of such."""
    results = func._schema.returns
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    new = results and all(r.alias_info is None and "Tensor" in str(r.type) for r in results)
    floating = tensors and any(t.is_floating_point() for t in tensors)
    return bool(new and floating) and not func._schema.is_mutable


def _empty_result(func: Any, args: Any, kwargs: Any) -> Any:
    given = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    given = tree_map_only(torch.device, lambda device: torch.device("meta"), given)
    made = func(*given[0], **given[1])
    if "convolution" in func._schema.name:  # its meta functions say NCHW, cuDNN takes the format of any of its tensors
        maps = [t for t in args[:3] if isinstance(t, Tensor) and t.dim() == 4]
        if any(map(is_channels_last, maps)):
            made = tree_map_only(Tensor, _as_channels_last, made)
    return tree_map_only(Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), made)


def _as_channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


# ---- on a GPU --------------------------------------------------------------------------------------------------------

# Kinds by parts of a kernel's name, the first that fits.
NAMES = {
    OPTIMISER: ("multi_tensor_apply", "fusedadam", "amp_"),
    PRODUCTS: ("gemm", "gemv", "cutlass", "splitk", "cublas", "nvjet"),
    COPIES: ("memcpy", "catarray"),
    CASTS: ("copy_kernel", "direct_copy", "bfloat16_copy", "float16_copy", "float8_copy"),
    ADDITIONS: ("cudafunctor_add", "cudafunctoronself_add", "addfunctor"),
}


def _profiled(model: Any, batch: Sequence[Tensor], steps: int, counts: Counts, device: torch.device) -> None:
    """Kernels are told apart by name: casts and copies, or a gradient's addition and another, may have the same."""
    for _ in range(3):
        _steps(model, batch, steps)
    torch.cuda.synchronize()
    counts.kinds.clear()
    counts.names.clear()
    add(device_kernels(lambda: _steps(model, batch, steps), device), counts)


def add(kernels: Sequence[Kernel], counts: Counts) -> None:
    """Adds what ran on the GPU, but for our kernels, all of which are called `kernel` there."""
    for kernel in kernels:
        if kernel.name != "kernel":
            counts.add(kind_of(kernel.name), kernel.name)


def kind_of(kernel: str) -> str:
    """Of a kernel of torch or its libraries, by its name."""
    if is_convolution(kernel):
        return CONVOLUTIONS
    name = kernel.lower()
    return next((kind for kind, parts in NAMES.items() if any(part in name for part in parts)), OTHERS)
