"""The cases of support/nce_edges.py for the triton kernels, in triton's interpreter or on a GPU."""

from __future__ import annotations

import pytest
import torch
from support.nce_edges import BATCHES, CASES, FORMS, hold, hold_empty
from support.triton_numerics import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


SOME = [case for case in CASES if case.startswith("all") or case.startswith("infinite log")]


HARD = [(c, torch.float32) for c in CASES] + [(c, d) for c in SOME for d in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("at", range(len(HARD)), ids=lambda at: f"{HARD[at][0]}-{HARD[at][1]}")
def test_hard_numbers(at):
    """Each in one form of the negatives, which take turns: all three take three minutes of a core."""
    case, dtype = HARD[at]
    hold("triton", list(FORMS)[at % len(FORMS)], case, dtype, DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("case, dtype", HARD)
@pytest.mark.parametrize("form", FORMS)
def test_hard_numbers_in_every_form(form, case, dtype):
    hold("triton", form, case, dtype, DEVICE)


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_layers_without_images(form, batches):
    hold_empty("triton", form, batches, 3, DEVICE)
