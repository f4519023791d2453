"""A case's arguments: what is timed is what the gate saw."""

from __future__ import annotations

import pytest
import torch
from support.norm_suite import CPU, tiny_cases

from benchmarks.engine.work import EAGER, FUSED, Work, contestants
from benchmarks.ops.norm import work


@pytest.mark.parametrize("name", [EAGER, FUSED])
def test_what_is_timed_computes_what_the_gate_saw(name):
    given = work(tiny_cases("adaptive_instance_norm_relu")[0], CPU)
    function = given.contestants[name].function
    y, *gradients = given.copied().call(function, True)
    with torch.no_grad():
        assert torch.equal(given.copied().timed(function, False)()[0], y)
    timed = given.copied().timed(function, True)
    for _ in range(2):  # a call leaves nothing behind
        assert all(map(torch.equal, timed(), gradients))


def test_the_gradient_of_a_loss_has_the_dtype_that_the_contestant_gives_it():
    """A loss of bfloat16 rows is float32 in some forms, bfloat16 in others."""
    x = torch.ones(4, dtype=torch.bfloat16)
    given = Work((x,), (0,), (torch.ones(()),), {}, wide=True)
    for function in (lambda x: [x.sum()], lambda x: [x.float().sum()]):
        mine = given.copied()
        assert torch.equal(mine.timed(function, True)()[0], x) and torch.equal(mine.call(function, True)[1], x)


def test_compiled_contestants_are_the_stock_ones():
    found = contestants({EAGER: abs, FUSED: abs}, compiled=True)
    assert list(found) == [EAGER, FUSED, "torch.compile, eager"] and found["torch.compile, eager"].compiles
