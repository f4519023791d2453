"""Batches: their order, their share among processes, errors and interrupts."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.image_folders import opened, same
from torch.cuda._utils import _get_device_index

from i2i.data import batches
from i2i.errors import UsageError


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_come_in_order(root, threads):
    data = opened("unaligned", root)
    got = list(batches(data, 2, first=3, last=9, threads=threads))
    assert len(got) == 6
    for step, batch in zip(range(3, 9), got, strict=True):
        for i in range(2):
            assert same([images[i] for images in batch], data.item(2 * step + i))


class Numbers:
    """Items that are their numbers."""

    def item(self, number):
        return (torch.tensor([[[float(number)]]]),)


def test_processes_share_a_step():
    shares = [[batch[0].flatten().tolist() for batch in batches(Numbers(), 2, 1, 3, rank=r, world=3)] for r in range(3)]
    assert shares == [[[6, 7], [12, 13]], [[8, 9], [14, 15]], [[10, 11], [16, 17]]]


@pytest.mark.parametrize(("name", "index"), [("cuda", 1), ("cuda:2", 2)])
def test_threads_pin_memory_on_the_device_of_the_run(name, index, monkeypatch):
    """A stand-in, which is as strict as torch: it takes no device without a number, and that is what "auto" gives."""
    seen, pinned = [], []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append(_get_device_index(device)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t) or t)
    got = [batch[0].flatten().tolist() for batch in batches(Numbers(), 2, 0, 3, threads=1, device=torch.device(name))]
    assert got == [[0, 1], [2, 3], [4, 5]] and seen == [index] and len(pinned) == 3


def test_errors_of_workers_come_out_with_their_words(root):
    data = opened("unaligned", root, preprocess="none")
    with pytest.raises(UsageError, match="one size, got .*use batch_size 1, or a preprocess that crops"):
        list(batches(data, 3, 0, 4))
    for path in (root / "trainB").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match="trainB: none of its 2 images can be read"):
        list(batches(opened("unaligned", root), 1, 0, 4))


def test_interrupted_while_it_waits():
    """Ctrl-C ends it at once, though workers have plenty to do."""
    program = """
import time
from i2i.data import batches
class Slow:
    def item(self, number):
        print("begun", flush=True)
        time.sleep(0.3)
        return ()
try:
    for batch in batches(Slow(), 1, 0, 1000):
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ})
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert "interrupted" in child.communicate(timeout=60)[0]
    assert time.monotonic() - start < 30  # two rounds of four workers; a thousand items would take 75 s
