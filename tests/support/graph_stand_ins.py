"""What a CUDA graph asks of a training step, asked on a machine without a GPU.

`no_host_ties` fails on whatever ties a computation to the host; `TapeRecorder` records a computation's operators and
runs them again, as a CUDA graph does, and as little notices what happens on the host meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from kernels.patches import checks


class TiedToHost(AssertionError):
    pass


# Of torch and of Tensor, by name: what makes a tensor on the host, and copies it from there if it is told a device ...
COPIED = set("tensor as_tensor from_numpy new_tensor asarray".split())
# ... and what makes one on the host, unless it is told a device ...
MADE_ON_HOST = set("scalar_tensor zeros ones full empty arange linspace eye".split())
MADE_ON_HOST |= set("rand randn randint randperm normal".split())
# ... and what hands a value to the host.
READ = set("item tolist numpy cpu __bool__ __float__ __int__ __index__ __array__ is_nonzero equal allclose".split())
# Operators whose result has a size that the host waits for.
WAITS = set("_local_scalar_dense nonzero masked_select _unique2 unique_dim unique_consecutive equal bincount".split())


class _Functions(TorchFunctionMode):
    """The Python side: results of factories on the host are remembered, reads fail."""

    def __init__(self, hosts: WeakIdKeyDictionary):
        super().__init__()
        self.hosts = hosts

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, list) for index in indices):
                raise TiedToHost("a list, as an index, is a tensor of the host")
        if name in READ:
            raise TiedToHost(f"{name} waits for the device")
        if name in COPIED and kwargs.get("device") is not None or name == "new_tensor":
            raise TiedToHost(f"{name} copies from the host")
        made = function(*args, **kwargs)
        if name in MADE_ON_HOST | COPIED and kwargs.get("device") is None and isinstance(made, Tensor):
            self.hosts[made] = name
        return made


class _Operators(TorchDispatchMode):
    """The operators, of backward passes too."""

    def __init__(self, hosts: WeakIdKeyDictionary):
        super().__init__()
        self.hosts, self.count = hosts, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        tensors = [t for t in pytree.tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        if name in WAITS or (name == "repeat_interleave" and len(args) == 1):
            raise TiedToHost(f"{name} waits for the device")
        if name.startswith("index") and any(t.dtype == torch.bool for t in tensors[1:]):
            raise TiedToHost(f"{name} by a mask waits for the device")
        for t in tensors:
            if t in self.hosts:
                raise TiedToHost(f"{name} takes a tensor of the host, made by {self.hosts[t]}")
        self.count += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_host_ties(*on_host: Tensor) -> Iterator[_Operators]:
    """Inside, all tensors stand for those of a device, but for these and those that are made on the host meanwhile.
    TiedToHost, where anything waits for a device, or takes a tensor of the host."""
    hosts = WeakIdKeyDictionary()
    for t in on_host:
        hosts[t] = "the test"
    check = checks.check_range
    checks.check_range = lambda *_: None  # positions are looked at on the CPU alone: see as_ids
    try:
        with _Functions(hosts), _Operators(hosts) as operators:
            yield operators
    finally:
        checks.check_range = check


class Tape(TorchDispatchMode):
    """Operators with their tensors. What they have changed is put back at the end: recording runs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Any, Tensor]] = {}
        self.random = torch.get_rng_state()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, given in zip(function._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for t in pytree.tree_leaves(given):
                    self._keep(t)
        if function._schema.name == "aten::native_batch_norm":  # whose schema does not say so
            for t in args[3:5]:
                self._keep(t)
        results = function(*args, **kwargs)
        self.operators.append((function, args, kwargs, results))
        return results

    def _keep(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.before:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.before[storage.data_ptr()] = (storage, whole.clone())

    def put_back(self) -> None:
        for storage, held in self.before.values():
            torch.empty(0, dtype=torch.uint8).set_(storage).copy_(held)
        self.before.clear()
        torch.set_rng_state(self.random)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, results in self.operators:
            given = {t.untyped_storage().data_ptr() for t in pytree.tree_leaves((args, kwargs)) if is_tensor(t)}
            again = function(*args, **kwargs)
            for held, new in zip(pytree.tree_leaves(results), pytree.tree_leaves(again), strict=True):
                # not of a view, nor of what was changed in place
                if is_tensor(held) and held.untyped_storage().data_ptr() not in given:
                    held.copy_(new)


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


class TapeRecorder:
    """For `i2i.graphs.Graphs`."""

    tape: Tape | None = None

    def ready(self) -> None:
        pass

    def begin(self) -> None:
        self.tape = Tape()
        self.tape.__enter__()

    def end(self) -> Tape:
        tape, self.tape = self.tape, None
        assert tape is not None
        tape.__exit__(None, None, None)
        tape.put_back()
        return tape

    def abandon(self) -> None:
        if self.tape is not None:
            self.end()

    def stream(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
