"""What the GPU tests of several rooms do around their kernels: graphs and streams."""

from __future__ import annotations

import torch


def captured(step):
    """A CUDA graph of step(), and what it returned there. step() has run before, on another stream: all is compiled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    return graph, found


def behind_a_slow_writer(write, run):
    """What run() returns on a stream of its own, where write() of its input comes late."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some 10 ms
        write()
        got = run()
    stream.synchronize()
    return got
