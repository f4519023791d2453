"""The device's part of a training step: called, or on CUDA recorded once and replayed as a graph.

At batch 1 a GPU waits for its host: a CUT step is hundreds of launches, and PyTorch takes longer to make them than the
GPU to run them. A CUDA graph (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) makes them all at once.
What is recorded is what runs, so a recorded function must depend on its tensors alone: what is random or decided on the
host is drawn before it (`Draws`), and what has to happen on the host in its middle is named (`Graphs.outside`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from i2i import distributed
from i2i.devices import cuda_index

Losses = dict[str, Tensor]

# Calls of a function before it is recorded: they build and load kernels, let cuDNN choose its algorithms, and make the
# states of optimisers, none of which a recording can.
EAGER_CALLS = 3
# Each has memory for the outputs of its graphs: images of ever new sizes are not worth one each.
MOST_RECORDINGS = 8


class Draws(NamedTuple):
    """What a step takes from the host besides its batch."""

    variant: tuple[Hashable, ...] = ()  # decisions, in words: each combination is recorded for itself
    tensors: Any = ()  # numbers, in tensors on the CPU; nested in lists, tuples and dicts


Compute = Callable[[tuple[Tensor, ...], Draws], Losses]


class Graph(Protocol):
    def replay(self) -> None: ...


class Recorder(Protocol):
    """How a device records: torch.cuda here, a stand-in in the tests."""

    def ready(self) -> None:
        """Called before a recording begins."""

    def begin(self) -> None:
        """From now on operators are recorded, not run."""

    def end(self) -> Graph: ...

    def abandon(self) -> None:
        """Something went wrong between begin and end. Puts things so that functions can be called again; what was
        recorded before may be unusable."""

    def stream(self) -> Any:
        """A context in which a function is called, recorded and replayed."""


class CudaRecorder:
    """Everything, eager calls too, runs on one stream of its own: recording needs another than the default stream, and
    memory that was freed on one stream is not free on another."""

    def __init__(self, device: torch.device):
        self.device, self.side = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()  # shared: of recordings, one runs at a time

    def ready(self) -> None:
        torch.cuda.synchronize(self.device)
        gc.collect()  # what it would free in the middle of a recording could not be
        torch.cuda.empty_cache()  # the eager calls have left as much as the graphs are about to ask for

    def begin(self) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: threads that read images pin memory meanwhile, which is no concern of the recording
        self.graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def end(self) -> Graph:
        self.graph.capture_end()
        return self.graph

    def abandon(self) -> None:
        """After an operation that is not allowed in a capture, torch ends it halfway: up to 2.11 its allocator goes on
        as in a capture, and its generator refuses to draw outside of one (pytorch issue 180395)."""
        try:
            self.graph.capture_end()
        except RuntimeError:
            c: Any = torch._C
            index = cuda_index(self.device)
            with suppress(RuntimeError, AttributeError):
                c._cuda_endAllocateToPool(index, self.pool)
            generator: Any = torch.cuda.default_generators[index]
            fresh: Any = torch.Generator(torch.device("cuda", index))
            with suppress(RuntimeError, AttributeError):
                fresh.set_state(generator.get_state())
                generator.graphsafe_set_state(fresh)
        self.graph = torch.cuda.CUDAGraph()  # the other's memory is free
        self.pool = torch.cuda.graph_pool_handle()
        self.ready()

    @contextmanager
    def stream(self) -> Iterator[None]:
        current = torch.cuda.current_stream(self.device)
        self.side.wait_stream(current)
        try:
            with torch.cuda.stream(self.side):
                yield
        finally:
            current.wait_stream(self.side)


class Outside(NamedTuple):
    """What runs on the host between two graphs."""

    function: Callable[..., Any]
    given: Sequence[Any]
    results: list[Tensor]  # where the next graph reads them

    def replay(self) -> None:
        found, _ = flat(self.function(*self.given))
        for held, new in zip(self.results, found, strict=True):
            held.copy_(new)


class Recording:
    """Graphs and the calls between them, with the tensors that they read and write."""

    def __init__(self, batch: tuple[Tensor, ...], drawn: list[Tensor]):
        self.batch, self.drawn = batch, drawn
        self.parts: list[Graph | Outside] = []
        self.names: list[str] = []
        self.losses: Tensor | None = None  # in one vector

    def replay(self) -> Losses:
        for part in self.parts:
            part.replay()
        return self.results()

    def results(self) -> Losses:
        assert self.losses is not None
        return dict(zip(self.names, self.losses.clone().unbind()))  # the next replay writes over them

    def graphs(self) -> int:
        return sum(not isinstance(part, Outside) for part in self.parts)


class Graphs:
    """Runs the device's part of a step."""

    def __init__(self, device: torch.device, enabled: bool = True, recorder: Recorder | None = None):
        self.device, self.recorder = device, recorder
        self.reason = "" if recorder else why_not(device, enabled)  # why nothing is recorded (any more)
        if not self.reason and recorder is None:
            self.recorder = CudaRecorder(device)
        self.calls: dict[tuple, int] = {}  # by variant, and the shapes of all tensors
        self.recordings: dict[tuple, Recording] = {}
        self.recording: Recording | None = None  # the one that is being made
        self.told: set[str] = set()

    def forget(self) -> None:
        """What was recorded; steps are recorded anew."""
        self.recordings.clear()
        self.calls.clear()

    def run(self, compute: Compute, batch: tuple[Tensor, ...], draws: Draws) -> Losses:
        """compute(batch, draws), with their tensors on the device.

        `compute` returns scalars. It reads nothing that changes from step to step but its arguments, waits for no
        device, and launches the same for the same variant and shapes. Settings are recorded with it: who changes one,
        or puts other tensors in the place of those it uses, calls `forget`.
        """
        if self.device.type == "cpu" and self.recorder is None:
            return compute(batch, draws)
        tensors, structure = flat(draws.tensors)
        if self.recorder is None:
            sent = unpack(send(pack(tensors), self.device), tensors)
            return compute(send(batch, self.device), draws._replace(tensors=nested(sent, structure)))
        with self.recorder.stream():
            packed = pack(tensors)
            key = (draws.variant, *((t.shape, t.dtype, t.stride()) for t in (*batch, *tensors)))
            found = self.recordings.get(key)
            if found is not None:
                for held, new in zip((*found.batch, *found.drawn), (*batch, *packed), strict=True):
                    held.copy_(new, non_blocking=True)
                return found.replay()
            batch = tuple(copied(t, self.device) for t in batch)
            drawn = [copied(t, self.device) for t in packed]
            draws = draws._replace(tensors=nested(unpack(drawn, tensors), structure))
            self.calls[key] = self.calls.get(key, 0) + 1
            if self.reason or self.calls[key] <= EAGER_CALLS:
                return compute(batch, draws)
            if len(self.recordings) >= MOST_RECORDINGS:
                self._tell(f"there are {MOST_RECORDINGS} recordings, and steps of other sizes are launched one by one")
                return compute(batch, draws)
            made = Recording(batch, drawn)
            return self._record(key, compute, made, draws) or self._compute_instead(compute, made, draws)

    def _tell(self, sentence: str) -> None:
        if sentence not in self.told and distributed.rank() == 0:
            print(f"CUDA graphs: {sentence}", file=sys.stderr)
        self.told.add(sentence)

    def _record(self, key: tuple, compute: Compute, made: Recording, draws: Draws) -> Losses | None:
        """Records, and runs what is recorded. None where it could not be, and nothing of it has run."""
        assert self.recorder is not None
        self.recorder.ready()
        self.recording = made
        try:
            self.recorder.begin()
            losses = compute(made.batch, draws)
            made.names, made.losses = list(losses), torch.stack([loss.detach() for loss in losses.values()])
            self._close()
        except Exception as error:  # of the device, of a library: whatever it is, the step can do without a graph
            self.reason = " ".join(f"recording failed, {type(error).__name__}: {error}".split())[:300]
            if made.parts:  # a part of the step was done: it cannot be begun again
                raise RuntimeError(f"{self.reason}; cuda_graphs=false does without") from error
        finally:
            self.recording = None
            if made.losses is None or self.reason:  # also after Ctrl-C
                self.recordings.clear()
                self.recorder.abandon()
        if self.reason:
            return None
        self.recordings[key] = made
        return made.results()

    def _compute_instead(self, compute: Compute, made: Recording, draws: Draws) -> Losses:
        self._tell(f"steps are launched one by one: {self.reason}")
        try:
            return compute(made.batch, draws)
        except Exception as error:
            raise RuntimeError(f"a step failed after {self.reason}; cuda_graphs=false does without") from error

    def _close(self) -> None:
        """End the graph that is being recorded, and run it: what comes next may need its results."""
        assert self.recorder is not None and self.recording is not None
        graph = self.recorder.end()
        graph.replay()
        self.recording.parts.append(graph)

    def outside(self, function: Callable[..., Any], *given: Any) -> Any:
        """function(*given), a tensor, several or None, in the middle of what `run` runs: on the host, between two
        graphs. `given` is the same at every call, tensors with new values; what else `function` reads, it must look up
        then."""
        if self.recording is None:
            return function(*given)
        assert self.recorder is not None
        self._close()
        found, structure = flat(function(*given))
        held = [t.clone() for t in found]  # what was returned may be anybody's
        self.recording.parts.append(Outside(function, given, held))
        self.recorder.begin()
        return nested(held, structure)

    def report(self) -> list[str]:
        """What was recorded, a line each; or why nothing is."""
        lines = [f"steps are launched one by one: {self.reason}"] if self.reason else []
        for (variant, *shapes), recording in self.recordings.items():
            first = "x".join(map(str, shapes[0][0]))
            more = f", {', '.join(map(str, variant))}" if variant else ""
            graphs = recording.graphs()
            lines.append(f"batch {first}{more}: recorded, {graphs} graph{'s' * (graphs > 1)}")
        return lines or [f"nothing is recorded yet: each kind of step is launched {EAGER_CALLS} times first"]


def why_not(device: torch.device, enabled: bool) -> str:
    """Why steps on `device` are not recorded; empty when they are."""
    if device.type != "cuda":
        return f"the device is {device}"
    return "" if enabled else "cuda_graphs is false"


def flat(values: Any) -> tuple[list[Tensor], tuple[list[bool], Any]]:
    """The tensors among nested `values`, and what `nested` needs to put them back beside the others, which are None."""
    leaves, structure = pytree.tree_flatten(values)
    return [leaf for leaf in leaves if leaf is not None], ([leaf is None for leaf in leaves], structure)


def nested(tensors: Iterable[Tensor], structure: tuple[list[bool], Any]) -> Any:
    missing, tree = structure
    more = iter(tensors)
    return pytree.tree_unflatten([None if none else next(more) for none in missing], tree)


def send(tensors: Iterable[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(t.to(device, non_blocking=True) for t in tensors)


def copied(t: Tensor, device: torch.device) -> Tensor:
    """A copy on `device`, which later ones are written into."""
    return torch.empty_like(t, device=device).copy_(t, non_blocking=True)


def pack(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Small tensors on the CPU, as one of each dtype: one transfer then sends them all."""
    flats = []
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        flat = torch.cat([t.reshape(-1) for t in tensors if t.dtype == dtype])
        # From memory that is not pinned, a copy waits for the device. This one is used again when its copy is done.
        flats.append(flat.pin_memory() if torch.cuda.is_available() else flat)
    return flats


def unpack(flats: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of `pack`'s result, perhaps elsewhere by now, views of the shapes of its `tensors`."""
    sizes: dict[torch.dtype, list[int]] = {}
    for t in tensors:
        sizes.setdefault(t.dtype, []).append(t.numel())
    parts = {flat.dtype: iter(flat.split(sizes[flat.dtype])) for flat in flats}
    return [next(parts[t.dtype]).view(t.shape) for t in tensors]
