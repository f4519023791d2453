"""The cases of support/nce_edges.py for the kernels for GPUs: Triton's in its interpreter, CUDA's in the emulation, or
both on a GPU."""

from __future__ import annotations

import pytest
import torch
from support.device_numerics import DEVICE
from support.nce_edges import BATCHES, CASES, FORMS, hold, hold_empty
from support.turns import taking_turns

pytestmark = pytest.mark.usefixtures("poisoned")  # of conftest.py: memory nobody wrote is NaN


SOME = [case for case in CASES if case.startswith("all") or case.startswith("infinite log")]


HARD = [*((c, torch.float32) for c in CASES), *((c, d) for c in SOME for d in (torch.bfloat16, torch.float16))]


@pytest.mark.parametrize("form, hard", taking_turns(len(FORMS), FORMS, HARD))
def test_hard_numbers(form, hard, impl):
    """Each in one form of the negatives by default: all three take three minutes of a core."""
    hold(impl, form, *hard, DEVICE)


@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_layers_without_images(form, batches, impl):
    hold_empty(impl, form, batches, 3, DEVICE)
