"""One contestant of the whole-step table, in a process of its own: `python -m benchmarks.step_child NAME SIZE DEVICE`.

Reads commands from stdin, answers each with a line of JSON on stdout. The parent (steps.py) takes turns between the
processes, so that all are measured under the same conditions while each has its peak memory to itself.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

import kernels
from benchmarks.step_methods import METHODS
from i2i.config import Config

Json = dict[str, Any]


class Child:
    def __init__(self, name: str, size: int, device: torch.device, options: Json):
        kernels.keep_freed_memory()  # as i2i's trainer does; here for every contestant alike
        self.device = device
        method = METHODS[name]
        self.model = method.build(Config(crop_size=size, precision=method.precision, **options), device)
        generator = torch.Generator().manual_seed(0)
        shape = (1, 3, size, size)
        self.images = [(torch.rand(shape, generator=generator) * 2 - 1).to(device) for _ in range(2)]

    def _step(self) -> float:
        self._wait()
        start = time.perf_counter()
        losses = self.model.step(*self.images)
        self._wait()
        self.losses = {name: float(loss.detach()) for name, loss in losses.items()}
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def first(self, gradients: str) -> Json:
        """The first step: seconds with whatever is compiled, losses; gradients go into a file, a vector per network."""
        seconds = self._step()
        networks = self.model.networks.items()
        flat = {name: torch.cat([p.grad.detach().cpu().flatten() for p in net.parameters()]) for name, net in networks}
        torch.save(flat, gradients)
        return {"seconds": seconds, "losses": self.losses}

    def step(self) -> Json:
        return {"seconds": self._step()}

    def share(self) -> Json:
        """Part of a step's time that is not spent in convolutions and their gradients."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profile:
            self._step()
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        rows = profile.key_averages()
        total = sum(getattr(row, key) for row in rows)
        return {"outside_convolutions": 1 - sum(getattr(row, key) for row in rows if is_convolution(row.key)) / total}

    def peak(self) -> Json:
        """Bytes: of the process since it began, interpreter and libraries included; on a GPU of torch's allocator."""
        if self.device.type == "cuda":
            return {"peak_bytes": torch.cuda.max_memory_allocated(self.device)}
        status = Path("/proc/self/status")
        if status.exists():  # unlike getrusage, this does not begin with what the parent had
            return {"peak_bytes": 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])}
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def is_convolution(name: str) -> bool:
    """By the profiler's name of an operator, or of a kernel on a GPU."""
    name = name.lower()
    return any(word in name for word in ("conv", "cudnn", "fprop", "dgrad", "wgrad", "implicit_gemm"))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print must not mix with the answers
    name, size, device, options = sys.argv[1:]
    child = Child(name, int(size), torch.device(device), json.loads(options))
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = getattr(child, command)(*arguments)
        except Exception as error:  # a contestant that fails costs its own row
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
