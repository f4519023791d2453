"""Grids of slow cases of which the default run takes a part."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest


def taking_turns(every: int, *axes: Iterable) -> list:
    """All combinations of the values of `axes`, for parametrize. One in `every` belongs to the default run, in such a
    way that each value of an axis meets the values of the others in turn; the others are slow (pytest -m slow)."""
    cases = []
    for places in itertools.product(*(list(enumerate(axis)) for axis in axes)):
        slow = sum(at for at, _ in places) % every
        cases.append(pytest.param(*(value for _, value in places), marks=pytest.mark.slow if slow else ()))
    return cases
