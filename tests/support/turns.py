"""Many cases of which the default run takes a part."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TypeVar

import pytest

T = TypeVar("T")


def taking_turns(every: int, *given: Iterable) -> list:
    """All combinations of the values of `given`, for parametrize. One in `every` belongs to the default run, in such a
    way that each value of an axis meets the values of the others in turn; the others are slow (pytest -m slow)."""
    axes = [list(axis) for axis in given]
    assert every <= max(map(len, axes)), "else a value of the longest axis would only be slow"
    cases = []
    for places in itertools.product(*(list(enumerate(axis)) for axis in axes)):
        slow = sum(at for at, _ in places) % every
        cases.append(pytest.param(*(value for _, value in places), marks=pytest.mark.slow if slow else ()))
    return cases


def covering(cases: Mapping[T, set]) -> list[T]:
    """Some of the cases, given with the values that each has: so many that every value is in one of them."""
    left, chosen = set().union(*cases.values()), []
    while left:
        best = max(cases, key=lambda case: len(cases[case] & left))
        left -= cases[best]
        chosen.append(best)
    return chosen
