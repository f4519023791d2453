"""One contestant of a whole-step table, in a process of its own:
`python -m benchmarks.systems.child MODULE DEVICE ARGUMENTS`.

MODULE.contestant(DEVICE, **ARGUMENTS) gives (model, batch, turn): step(*batch) of the model is what is measured, `turn`
of them at a time, and on CUDA a block of so many turns between two synchronisations. Reads commands from stdin, answers
each with a line of JSON on stdout. The parent (turns.py) takes turns between the processes, so that all are measured
under the same conditions while each has its peak memory to itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kernels
from benchmarks.engine.measure import Kernel, device_kernels
from benchmarks.engine.work import Json

# By device: a step of a GPU takes 5 to 30 ms, of which a synchronisation and a clock's reading would be a part.
BLOCK = {"cpu": 1, "cuda": 20}
# Ours is captured at the fourth step of a variant, a graph of torch.compile at about the third. Of FastCUT's two, drawn
# at random, 24 steps leave one uncaptured once in 7,000 runs.
WARM = {"cpu": 0, "cuda": 24}


class Child:
    def __init__(self, model: Any, batch: Sequence[Tensor], turn: int):
        self.model, self.batch, self.turn = model, batch, turn
        self.device: torch.device = model.device

    def _steps(self, count: int) -> float:
        """Seconds per step."""
        self._wait()
        start = time.perf_counter()
        for _ in range(count):
            self.losses = self.model.step(*self.batch)
        self._wait()
        return (time.perf_counter() - start) / count

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def first(self, gradients: str) -> Json:
        """The first step: seconds with whatever is compiled, losses; gradients go into a file, a vector per network.

        float32 convolutions are exact in it: on a GPU cuDNN takes them as TF32, whose rounding the gate's limits for
        float32 have no room for. The steps that are timed are as torch has them by default.
        """
        torch.manual_seed(0)  # of dropout and noise
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            seconds = self._steps(1)
        finally:
            torch.backends.cudnn.allow_tf32 = before
        flat = {}
        for name, net in self.model.networks.items():
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
            flat[name] = torch.cat([g.detach().cpu().flatten() for g in found])
        torch.save(flat, gradients)
        losses = {name: float(loss.detach()) for name, loss in self.losses.items()}
        return {"first_step_s": seconds, "losses": losses, "batch": [list(t.shape) for t in self.batch]}

    def warm(self) -> Json:
        """Steps until nothing is built or captured any more; what became of the graphs of a model that has some."""
        if steps := self.turn * WARM[self.device.type]:
            self._steps(steps)
        return {"graphs": self.model.graphs.report()} if hasattr(self.model, "graphs") else {}

    def step(self) -> Json:
        return {"seconds": self._steps(self.turn * BLOCK[self.device.type])}

    def share(self) -> Json:
        """Part of a step's time that is not spent in convolutions and their gradients. Of a GPU's also what they take,
        and how many kernels, copies and fills it ran."""
        if self.device.type == "cuda":
            return kernel_share(device_kernels(lambda: self._steps(self.turn), self.device), self.turn)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self._steps(self.turn)
        rows = profile.key_averages()
        total = sum(row.self_cpu_time_total for row in rows)
        inside = sum(row.self_cpu_time_total for row in rows if is_convolution(row.key))
        return {"outside_convolutions": 1 - inside / total}

    def peak(self) -> Json:
        """Bytes: of the process since it began, interpreter and libraries included; on a GPU of torch's allocator."""
        if self.device.type == "cuda":
            reserved = torch.cuda.max_memory_reserved(self.device)
            return {"peak_bytes": torch.cuda.max_memory_allocated(self.device), "reserved_bytes": reserved}
        status = Path("/proc/self/status")
        if status.exists():  # unlike getrusage, this does not begin with what the parent had
            return {"peak_bytes": 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])}
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def kernel_share(kernels: Sequence[Kernel], steps: int) -> Json:
    """What `share` says of all that a GPU ran in so many steps."""
    if not kernels:
        return {}
    total = sum(kernel.microseconds for kernel in kernels)
    inside = sum(kernel.microseconds for kernel in kernels if is_convolution(kernel.name))
    return {
        "outside_convolutions": 1 - inside / total,
        "convolutions_s": inside / 1e6 / steps,
        "device_s": total / 1e6 / steps,
        "launches": round(len(kernels) / steps),
    }


def is_convolution(name: str) -> bool:
    """By the profiler's name of an operator, or of a kernel on a GPU."""
    name = name.lower()
    return any(word in name for word in ("conv", "cudnn", "fprop", "dgrad", "wgrad", "implicit_gemm"))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    # Where memory runs out, Linux ends this process, which costs a row, and nobody else's.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    name, device, arguments = sys.argv[1:]
    module = importlib.import_module(name)
    # for every contestant alike: as i2i's trainer does, and as the published code does on GPUs
    if not getattr(module, "OWN_MEMORY", False):
        kernels.keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    child = Child(*module.contestant(device, **json.loads(arguments)))
    for line in sys.stdin:
        command, *given = json.loads(line)
        try:
            answer = getattr(child if hasattr(child, command) else child.model, command)(*given)
        except Exception as error:  # a contestant that fails costs its own row
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
