"""What the suites beside the norms share: a gate, interleaved rounds, rows of figures.

Same rules as for the norms: nothing is timed before its outputs and gradients were compared with the published form in
float64, contestants take turns in every round, medians come with their spread, losses are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from benchmarks.engine.gate import FACTOR, FLOOR, distance
from benchmarks.engine.measure import Subject, interleave, peak_bytes, spread
from benchmarks.engine.progress import Progress
from benchmarks.engine.runner import argument_sets, bandwidth, copy_subject, prepared, relate, times
from benchmarks.ops.norm import FUSED
from benchmarks.ops.norm_cases import MODES, dtype_name
from kernels import BackendUnavailable

Tensor = torch.Tensor
Json = dict[str, Any]
Function = Callable[..., list[Tensor]]

EAGER = "eager"  # the published form: limits come from it, and the gate's reference is it in float64
SLOW_MS = 500.0  # rows whose round takes longer get three rounds: their spread is small and minutes are dear


class Case(Protocol):
    """What a suite's cases have in common: one operator at one size and dtype."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def compiled(self) -> bool: ...


class Work(NamedTuple):
    """A case's arguments and contestants: function(*tensors) -> outputs; gradients of `wanted` for given ones of the
    outputs."""

    tensors: tuple[Tensor, ...]
    wanted: tuple[int, ...]
    grads: tuple[Tensor, ...]
    contestants: dict[str, Function]

    def copied(self, dtype: torch.dtype | None = None) -> Work:
        """Fresh leaves, in the same memory format, of another dtype if given."""

        def copy(t: Tensor) -> Tensor:
            return t.detach().clone().to(dtype) if dtype and t.is_floating_point() else t.detach().clone()

        tensors = tuple(copy(t).requires_grad_(i in self.wanted) for i, t in enumerate(self.tensors))
        return self._replace(tensors=tensors, grads=tuple(map(copy, self.grads)))

    def call(self, function: Function, backward: bool) -> list[Tensor]:
        """Outputs, and gradients with `backward`."""
        with torch.set_grad_enabled(backward):
            outputs = function(*self.tensors)
        if not backward:
            return outputs
        grads = [g.to(y.dtype) for g, y in zip(self.grads, outputs)]
        found = torch.autograd.grad(outputs, [self.tensors[i] for i in self.wanted], grads)
        return [*(y.detach() for y in outputs), *found]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.tensors, *self.grads))


class Suite(NamedTuple):
    """One group of operators: what is measured of it, and how its report names things."""

    name: str  # of its files
    title: str
    operators: tuple[str, ...]  # as --op takes them
    about: dict[str, str]  # every contestant, in the order of the report
    legend: str
    column: tuple[str, str]  # heading, and which figure of the fused contestant stands under it
    groups: tuple[str, ...]  # by which keys of a row the summary tells ratios apart
    cases: Callable[[bool, Sequence[str]], Sequence[Any]]  # (full, names; all when empty)
    work: Callable[[Any, torch.device], Work]
    describe: Callable[[Any], Json]  # a case's sizes
    modes: Callable[[Any], tuple[bool, ...]] = lambda case: (False, True)  # backward or not
    # either of these adds figures to a contestant's times, of a case and backward or not
    flops: Callable[[Any, bool], int] | None = None
    necessary_bytes: Callable[[Any, bool], int] | None = None  # with it a copy of so many bytes is measured beside
    # what goes into the result besides rows; no cases when the run was interrupted
    extras: Callable[[Sequence[Any], torch.device, bool], Json] = lambda cases, device, full: {}
    pictures: Callable[[Json], dict[str, bytes]] = lambda result: {}  # PNGs besides the speed-ups, by name


def run(
    suite: Suite, cases: Sequence[Case], device: torch.device, rounds: int, skip: Sequence[str] = ()
) -> Iterator[Json]:
    """Measures row after row; close it at any time."""
    progress = Progress(sum(len(suite.modes(case)) for case in cases))
    try:
        for case in cases:
            progress.show(case.label)
            given = suite.work(case, device)
            exact, limits = judged_by(case, given)
            for backward in suite.modes(case):
                progress.show(f"{case.label} {MODES[backward]}")
                yield _measure(suite, case, given, backward, exact, limits, device, rounds, skip)
                progress.step()
    finally:
        progress.close()


def judged_by(case: Case, given: Work) -> tuple[list[Tensor], list[float]]:
    """Results of the published form in float64, and how far each contestant's may be from them."""
    eager = given.contestants[EAGER]
    exact = given.copied(torch.float64).call(eager, True)
    own = given.copied().call(eager, True)
    return exact, [FACTOR * distance(a, b) + FLOOR[case.dtype] for a, b in zip(own, exact)]


def judge(mine: Work, function: Function, backward: bool, exact: Sequence[Tensor], limits: Sequence[float]) -> Json:
    """Status "ok", "FAIL" (wrong result), "absent" (not on this machine) or "error" (it raised)."""
    try:
        got = mine.call(function, backward)
    except BackendUnavailable as error:
        return {"status": "absent", "reason": str(error)}
    except Exception as error:  # somebody else's code: a compiler that crashes costs its own cell, not the run
        return {"status": "error", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    errors = [distance(a, b) for a, b in zip(got, exact)]
    wrong = [f"result {i}: {e:.2g}, limit {m:.2g}" for i, (e, m) in enumerate(zip(errors, limits)) if not e <= m]
    return {"status": "FAIL" if wrong else "ok", "reason": "; ".join(wrong), "errors": errors}


def _contestants(case: Case, given: Work, skip: Sequence[str]) -> dict[str, Function]:
    found = dict(given.contestants)
    if case.compiled:
        for name in (n for n in given.contestants if n != FUSED):
            found[f"torch.compile, {name}"] = torch.compile(given.contestants[name], dynamic=False)
    return {name: f for name, f in found.items() if not name.startswith(tuple(skip))}


def _measure(suite: Suite, case: Case, given: Work, backward: bool, exact, limits, device, rounds: int, skip) -> Json:
    torch.compiler.reset()
    nbytes = suite.necessary_bytes(case, backward) if suite.necessary_bytes else 0
    sets = argument_sets(given.nbytes, device) if nbytes else 1  # products do not wait for memory
    results: dict[str, Json] = {}
    subjects = []
    for name, function in _contestants(case, given, skip).items():
        arguments = [given.copied() for _ in range(sets)]
        start = time.perf_counter()
        result = results[name] = judge(arguments[0], function, backward, exact, limits)
        if name.startswith("torch.compile"):
            result["compile_seconds"] = time.perf_counter() - start
        if result["status"] == "ok":
            calls = [lambda mine=mine, function=function: mine.call(function, backward) for mine in arguments]
            result["peak_bytes"] = peak_bytes(calls[0], backward, device)
            subjects.append(Subject(name, calls, backward))
    copies = prepared([copy_subject(nbytes, sets, device)] if nbytes else [], results, device)
    subjects = prepared(subjects, results, device)
    start = time.perf_counter()
    for subject in subjects:
        subject.sample(1)
    slow = (time.perf_counter() - start) * 1e3 > SLOW_MS
    ran, disturbed = interleave([*copies, *subjects], min(3, rounds) if slow else rounds)
    row = {
        "operator": case.name,
        "label": case.label,
        **suite.describe(case),
        "dtype": dtype_name(case.dtype),
        "mode": MODES[backward],
        "rounds": ran,
        "rounds_disturbed": disturbed,
        "noisy": 2 * disturbed > ran,
    }
    for subject in subjects:
        results[subject.name] |= times(subject)
        if suite.flops:
            median = spread(subject.samples_ms)[1]
            results[subject.name]["gflops"] = suite.flops(case, backward) / median / 1e6
    for copy in copies:
        copy_ms = spread(copy.samples_ms)[1]
        row |= {"necessary_bytes": nbytes, "copy": times(copy) | bandwidth(copy, nbytes, copy_ms)}
        for subject in subjects:
            results[subject.name] |= bandwidth(subject, nbytes, copy_ms)
    relate(results)
    return row | {"providers": results}
